"""A conversation: its commands, what the models read, and what stands on standard output."""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tunesmith.errors import InputError
from tunesmith.spec import GenerationSpec
from tunesmith.verbs.chat import Conversation, Messages, Speaker, Turn, chat, converse, set_field


def new_conversation(system: str = "") -> Conversation:
    return Conversation(GenerationSpec(), system)


def echo(name: str = "tuned", longest: int = 1000) -> Speaker:
    """Says how many messages it reads and the last of them; reads as many characters as `longest`."""

    def answer(messages: Messages, settings: GenerationSpec) -> Generator[str, None, None]:
        yield from (f"{len(messages)} ", messages[-1]["content"])

    return Speaker(name, answer, lambda messages, settings: sum(len(message["content"]) for message in messages) <= longest)


def talk(
    conversation: Conversation, speakers: list[Speaker], lines: list[str], interactive: bool = False, **terminal: Any
) -> tuple[str, str]:
    """What stands on the console and among the notes."""
    out, notes = io.StringIO(), io.StringIO()
    converse(conversation, speakers, lines, Console(file=out, **terminal), Console(file=notes, width=200), interactive)
    return out.getvalue(), notes.getvalue()


def test_a_conversation_remembers_and_begins_anew() -> None:
    conversation = new_conversation()
    out, notes = talk(conversation, [echo()], ["one", "", " /two ", "/reset", "three", "/quit", "four"])
    assert out == "1 one\n3 /two\n1 three\n"
    assert notes == "a new conversation\n"
    assert conversation.turns == [Turn("three", {"tuned": "1 three"})]


def test_the_system_prompt_comes_first_and_stays() -> None:
    conversation = new_conversation()
    talk(conversation, [echo()], ["one", "/system be brief", "/reset"])
    assert conversation.messages("tuned", [Turn("a", {"tuned": "b"})], "c") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert talk(conversation, [echo()], ["/system", "x"])[0] == "1 x\n"


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("/set temperature 0.7", {"do_sample": True, "temperature": 0.7}),
        ("/set top_k=5", {"do_sample": True, "top_k": 5}),
        ("/set max_new_tokens = 12", {"max_new_tokens": 12}),
        ("/set stop User: x", {"stop": ["User: x"]}),
        ('/set stop ["\\n", "User:"]', {"stop": ["\n", "User:"]}),
    ],
)
def test_set_changes_one_setting(line: str, changed: dict[str, Any]) -> None:
    conversation = new_conversation()
    conversation.take(line)
    assert conversation.settings == GenerationSpec(**changed)


def test_a_temperature_of_nothing_takes_the_likeliest_again() -> None:
    drawing = set_field(set_field(GenerationSpec(seed=2), "temperature", "0.7"), "top_p", "0.9")
    assert drawing == GenerationSpec(do_sample=True, temperature=0.7, top_p=0.9, seed=2)
    assert set_field(drawing, "temperature", "0") == GenerationSpec(seed=2)
    assert set_field(drawing, "do_sample", "false") == GenerationSpec(seed=2)


@pytest.mark.parametrize(
    ("line", "code", "found", "fix"),
    [
        ("/sett temperature 1", "usage.argument", "/sett", "did you mean /set?"),
        ("/set temprature 1", "spec.unknown_key", "temprature", "did you mean temperature?"),
        ("/set temperature warm", "spec.value", "warm", "Below 1"),
        ("/set temperature nan", "spec.value", "nan", "Below 1"),
        ("/set max_new_tokens", "spec.value", "nothing", "Tokens after which"),
        ("/set top_p 2", "spec.value", "2", "Draw only"),
        ('/set stop ["a', "spec.value", '["a', "Texts that end"),
        ("/set stop [1]", "spec.value", "[1]", "Texts that end"),
        ("/reset now", "usage.argument", "now", "/reset"),
    ],
)
def test_a_mistaken_command_says_what_was_meant(line: str, code: str, found: str, fix: str) -> None:
    conversation = new_conversation()
    with pytest.raises(InputError) as caught:
        talk(conversation, [echo()], [line])
    assert (caught.value.code, caught.value.problems[0].found) == (code, found)
    assert fix in caught.value.problems[0].fix
    assert conversation.settings == GenerationSpec()
    out, notes = talk(conversation, [echo()], [line, "go on"], interactive=True)
    assert out == "1 go on\n"
    assert code in notes


def test_help_names_every_command_and_set_every_setting() -> None:
    _, notes = talk(new_conversation(), [echo()], ["/help", "/set"])
    assert all(command in notes for command in ("/reset", "/system", "/set", "/help", "/quit"))
    assert all(f"{name} " in notes for name in GenerationSpec.model_fields)


def test_the_oldest_turns_are_left_out_with_a_note() -> None:
    conversation = new_conversation("sys")
    # each turn of one letter is 1 + 3 characters, the system prompt 3
    out, notes = talk(conversation, [echo(longest=8)], ["a", "b", "c", "/system", "ddddd"])
    assert out == "2 a\n4 b\n4 c\n1 ddddd\n"
    assert [line.partition(" left out")[0] for line in notes.splitlines()] == [
        "(the oldest turn is",
        "no system prompt",
        "(the 2 oldest turns are",
    ]
    assert [turn.question for turn in conversation.turns] == ["ddddd"]


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation() -> None:
    closed: list[str] = []

    def interrupted(messages: Messages, settings: GenerationSpec) -> Generator[str, None, None]:
        try:
            if messages[-1]["content"] == "late":
                yield "half"
            if messages[-1]["content"] != "go on":
                raise KeyboardInterrupt
            yield f"read {len(messages)}"
        finally:
            closed.append(messages[-1]["content"])

    conversation = new_conversation()
    out, notes = talk(conversation, [Speaker("tuned", interrupted, lambda *given: True)], ["early", "late", "go on"])
    assert out == "halfread 3\n"
    assert notes.split() == ["(stopped)", "(stopped)"]
    assert closed == ["early", "late", "go on"]
    assert [turn.question for turn in conversation.turns] == ["late", "go on"]


def test_a_question_that_cannot_be_answered_is_forgotten() -> None:
    def refuse(messages: Messages, settings: GenerationSpec) -> Generator[str, None, None]:
        raise InputError("data.too_long", "too long")
        yield ""

    conversation = new_conversation()
    conversation.turns = kept = [Turn("a", {"tuned": "b"})]
    _, notes = talk(conversation, [Speaker("tuned", refuse, lambda *given: False)], ["long"], interactive=True)
    assert "data.too_long" in notes
    assert conversation.turns == kept


def test_two_models_answer_one_after_the_other_each_with_its_own_history() -> None:
    def count(messages: Messages, settings: GenerationSpec) -> Generator[str, None, None]:
        yield f"I said {messages[-2]['content'] if len(messages) > 1 else 'nothing'}"

    conversation = new_conversation()
    out, _ = talk(conversation, [echo(), Speaker("base", count, lambda *given: True)], ["a", "b"])
    assert out == "tuned:\n1 a\nbase:\nI said nothing\ntuned:\n3 b\nbase:\nI said I said nothing\n"


@pytest.mark.parametrize(("width", "beside"), [(100, True), (99, False)])
def test_two_models_stand_side_by_side_on_a_wide_terminal(width: int, beside: bool) -> None:
    conversation = new_conversation()
    out, _ = talk(conversation, [echo("tuned"), echo("base")], ["[b]x[/b]"], interactive=True, force_terminal=True, width=width)
    assert any(line.count("1 [b]x[/b]") == 2 for line in out.splitlines()) is beside
    assert ("tuned:\n" in out) is not beside
    assert conversation.turns == [Turn("[b]x[/b]", {"tuned": "1 [b]x[/b]", "base": "1 [b]x[/b]"})]


TEMPLATE = """{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system prompt here') }}{% endif -%}
{{ message['content'] }} {% endfor %}"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """What `chat` reads of a run, with a tiny random model."""
    import transformers

    from tiny_models import save_tiny

    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny("llama", tmp_path, "AutoModelForCausalLM"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = TEMPLATE
    task = SimpleNamespace(name="causal_lm", generation=GenerationSpec(max_new_tokens=8))
    return SimpleNamespace(spec=SimpleNamespace(task=task), model=model, base_model=model, tokenizer=tokenizer)


def test_piped_lines_are_answered_on_standard_output(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.engines.generation import generate

    def written(prompt: str, max_new_tokens: int) -> str:
        settings = GenerationSpec(max_new_tokens=max_new_tokens)
        return next(generate(run.model, run.tokenizer, [run.tokenizer(prompt)["input_ids"]], settings))[1].text

    monkeypatch.setattr("sys.stdin", io.StringIO("good day\r\n/set max_new_tokens 4\nfine\n"))
    chat(run, settings=["max_new_tokens=6"])
    first = written("good day ", 6)
    assert capsys.readouterr().out == f"{first}\n{written(f'good day {first} fine ', 4)}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("good day\n"))
    chat(run, compare=True, settings=["max_new_tokens=6"])
    assert capsys.readouterr().out == f"tuned:\n{first}\nbase:\n{first}\n"


def test_a_template_that_refuses_is_told(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/system be brief\nhello\n"))
    with pytest.raises(InputError, match="refuses the conversation") as caught:
        chat(run)
    assert caught.value.problems[0].found == "no system prompt here"


def test_runs_that_cannot_converse_are_refused(run: Any) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        chat(run, use_base=True, compare=True)
    run.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        chat(run)
    run.spec.task.name = "text_classification"
    with pytest.raises(InputError, match="does not write"):
        chat(run)
