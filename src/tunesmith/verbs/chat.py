"""`chat`: a conversation with a run's model, with its base model, or with both side by side."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunesmith.errors import InputError, TunesmithError, did_you_mean
from tunesmith.registry import TASKS
from tunesmith.spec import GenerationSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Messages = list[dict[str, str]]

HELP = """/reset             begin anew; settings and system prompt stay
/system TEXT       put this system prompt first; without TEXT none
/set NAME VALUE    change how the model writes, e.g. /set temperature 0.7 (0 takes the likeliest); /set alone shows all
/help              show this
/quit              end, as Ctrl-D does; Ctrl-C stops an answer
A line that begins with a space is never a command."""
COMMANDS = ("/reset", "/system", "/set", "/help", "/quit")
DRAWING = ("temperature", "top_p", "top_k")
"""Settings that need do_sample."""
COLUMNS_SIDE_BY_SIDE = 100
"""Width of a terminal from which two answers stand side by side."""


@dataclass(frozen=True)
class Speaker:
    """A model that answers."""

    name: str
    answer: Callable[[Messages, GenerationSpec], Generator[str, None, None]]
    """Pieces of the answer, as they are written."""
    fits: Callable[[Messages, GenerationSpec], bool]
    """Whether the model can read the messages and write an answer of full length."""


@dataclass(frozen=True)
class Turn:
    """A question and the answer of each speaker."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Effect:
    """What a line of the user asks for: `ask` the models, `say` something to the user, or `quit`."""

    kind: str
    text: str = ""


@dataclass
class Conversation:
    """What was said, and how answers are written."""

    settings: GenerationSpec
    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def take(self, line: str) -> Effect:
        """Obeys a command; any other line is a question. Raises InputError when a command cannot be obeyed."""
        if not line.startswith("/"):
            return Effect("ask", line.strip()) if line.strip() else Effect("say")
        command, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        if command not in COMMANDS:
            fix = f"{did_you_mean(command, COMMANDS)} (a line that begins with a space is no command)"
            raise InputError("usage.argument", "there is no such command", found=command, fix=fix)
        if argument and command in ("/reset", "/help", "/quit"):
            raise InputError("usage.argument", f"{command} takes nothing more", found=argument, fix=command)
        if command == "/quit":
            return Effect("quit")
        if command == "/reset":
            self.turns.clear()
            return Effect("say", "a new conversation")
        if command == "/system":
            self.system = argument
            return Effect("say", "the system prompt is set" if argument else "no system prompt")
        if command == "/set":
            if argument:
                self.settings = set_field(self.settings, *_name_and_value(argument))
            return Effect("say", "\n".join(f"{name} {json.dumps(value)}" for name, value in self.settings.model_dump().items()))
        return Effect("say", HELP)

    def messages(self, name: str, turns: Sequence[Turn], question: str) -> Messages:
        """What a speaker reads: these turns, as far as it answered them, and the question."""
        said: Messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in turns:
            if turn.answers.get(name):
                said += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answers[name]}]
        return [*said, {"role": "user", "content": question}]

    def latest_turns(self, speakers: Iterable[Speaker], question: str) -> list[Turn]:
        """The turns that each speaker can read before the question: the oldest are left out first."""
        turns = list(self.turns)
        for speaker in speakers:
            while turns and not speaker.fits(self.messages(speaker.name, turns, question), self.settings):
                turns.pop(0)
        return turns


def _name_and_value(text: str) -> tuple[str, str]:
    name, *value = re.split(r"\s*=\s*|\s+", text, maxsplit=1)
    return name, "".join(value)


def set_field(settings: GenerationSpec, name: str, text: str) -> GenerationSpec:
    """The settings with one changed; a temperature above 0, top_p and top_k draw, a temperature of 0 takes the likeliest.

    Raises InputError when there is no such setting, or it cannot have this value.
    """
    fields = GenerationSpec.model_fields
    if name not in fields:
        raise InputError("spec.unknown_key", "generation has no such setting", found=name, fix=did_you_mean(name, fields))
    said = settings.model_dump(exclude_unset=True)
    try:
        if name == "stop":
            said["stop"] = json.loads(text) if text.startswith("[") else [text] if text else []
        elif name == "temperature" and float(text) == 0:
            said["do_sample"] = False
        else:
            draws = {"do_sample": "true"} if name in DRAWING else {}
            said |= GenerationSpec.model_validate_strings({name: text, **draws}).model_dump(exclude_unset=True)
        if not said.get("do_sample"):
            said = {key: value for key, value in said.items() if key not in DRAWING}
        return GenerationSpec(**said)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    except ValueError as error:
        problem = str(error)
    fix = fields[name].description or ""
    raise InputError("spec.value", f"{name} cannot have this value: {problem}", found=text or "nothing", fix=fix)


def converse(
    conversation: Conversation,
    speakers: Sequence[Speaker],
    lines: Iterable[str],
    console: Console,
    notes: Console,
    interactive: bool,
) -> None:
    """Answers line after line on `console`; what is not an answer goes to `notes`.

    A mistake is noted and the conversation goes on when it is interactive; otherwise it is raised.
    """
    for line in lines:
        try:
            effect = conversation.take(line)
            if effect.kind == "quit":
                return
            if effect.kind == "ask":
                _answer(conversation, speakers, effect.text, console, notes)
            elif effect.text:
                notes.print(effect.text, markup=False, highlight=False)
        except TunesmithError as error:
            if not interactive:
                raise
            notes.print(str(error), markup=False, highlight=False, soft_wrap=True)


def _answer(conversation: Conversation, speakers: Sequence[Speaker], question: str, console: Console, notes: Console) -> None:
    turns = conversation.latest_turns(speakers, question)
    if left_out := len(conversation.turns) - len(turns):
        turns_left = "the oldest turn is" if left_out == 1 else f"the {left_out} oldest turns are"
        notes.print(f"({turns_left} left out: the conversation is longer than the model reads)", markup=False, highlight=False)
    texts = {speaker.name: "" for speaker in speakers}
    pieces = {
        speaker.name: speaker.answer(conversation.messages(speaker.name, turns, question), conversation.settings) for speaker in speakers
    }
    try:
        if len(speakers) > 1 and console.is_terminal and console.width >= COLUMNS_SIDE_BY_SIDE:
            _show_side_by_side(pieces, texts, console)
        else:
            _show_in_turn(pieces, texts, console)
    except KeyboardInterrupt:
        notes.print("\n(stopped)", markup=False, highlight=False)
        if not any(texts.values()):
            return
    finally:
        for iterator in pieces.values():
            iterator.close()
    conversation.turns = [*turns, Turn(question, texts)]


def _show_in_turn(pieces: Mapping[str, Iterator[str]], texts: dict[str, str], console: Console) -> None:
    for name, iterator in pieces.items():
        if len(pieces) > 1:
            print(f"{name}:", file=console.file)
        for piece in iterator:
            texts[name] += piece
            print(piece, end="", file=console.file, flush=True)  # rich would take characters away
        print(file=console.file, flush=True)


def _show_side_by_side(pieces: Mapping[str, Iterator[str]], texts: dict[str, str], console: Console) -> None:
    from rich.live import Live

    writing = dict(pieces)
    with Live(console=console, transient=True) as live:
        try:
            while writing:
                for name, iterator in list(writing.items()):
                    piece = next(iterator, None)
                    if piece is None:
                        del writing[name]
                    else:
                        texts[name] += piece
                live.update(_columns({name: _last_lines(text, console) for name, text in texts.items()}, console))
        finally:
            live.update("", refresh=True)
            console.print(_columns(texts, console))


def _last_lines(text: str, console: Console) -> str:
    """The lines of a column that fit on the terminal: what is higher could not be drawn over."""
    from rich.text import Text

    lines = Text(text).wrap(console, (console.width - 10) // 2)
    return "\n".join(line.plain for line in lines[-max(console.height - 5, 1) :])


def _columns(texts: Mapping[str, str], console: Console) -> Table:
    from rich.table import Table
    from rich.text import Text

    # narrower than the terminal: the echo of ^C must not begin a line that is then not drawn over
    table = Table(width=console.width - 3)
    for name in texts:
        table.add_column(name, ratio=1)
    table.add_row(*map(Text, texts.values()))
    return table


def chat(run: Any, use_base: bool = False, compare: bool = False, settings: Sequence[str] = ()) -> None:
    """Talks with a run's model on standard input and output; `settings` are key=value of GenerationSpec.

    Raises InputError when the run's model does not converse.
    """
    from rich.console import Console

    if use_base and compare:
        raise InputError("usage.argument", "--base and --compare exclude each other", fix="--compare shows the base model too")
    if TASKS.get(run.spec.task.name).prompt is None:
        raise InputError("usage.argument", "the run's model does not write", found=f"task {run.spec.task.name}", fix="tunesmith predict")
    if run.tokenizer.chat_template is None:
        fix = "tunesmith predict, which writes a text on"
        raise InputError("model.tokenizer", "the run's tokenizer has no chat template", found=f"task {run.spec.task.name}", fix=fix)
    section = run.spec.task
    system = getattr(section, "system", "none")  # a plugin's task need not have one
    conversation = Conversation(section.generation, "" if system == "none" else system)
    for setting in settings:
        conversation.settings = set_field(conversation.settings, *_name_and_value(setting))
    speakers = [] if use_base else [_speaker("tuned", run.model, run.tokenizer)]
    if use_base or compare:
        speakers.append(_speaker("base", run.base_model, run.tokenizer))
    interactive = sys.stdin.isatty()
    notes = Console(stderr=True)
    if interactive:
        notes.print(f"{' and '.join(speaker.name for speaker in speakers)} model; /help shows the commands", highlight=False)
    converse(conversation, speakers, _typed_lines() if interactive else _piped_lines(), Console(), notes, interactive)


def _speaker(name: str, model: Any, tokenizer: Any) -> Speaker:
    from jinja2 import TemplateError

    from tunesmith.engines.generation import stream
    from tunesmith.models.load import longest_input

    longest = longest_input(tokenizer, model)

    def encode(messages: Messages) -> list[int]:
        try:
            return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))
        except TemplateError as error:
            fix = "/system without a text, if the template takes no system prompt"
            raise InputError("model.tokenizer", "the chat template refuses the conversation", found=str(error), fix=fix) from error

    return Speaker(
        name,
        lambda messages, settings: stream(model, tokenizer, encode(messages), settings),
        lambda messages, settings: len(encode(messages)) + settings.max_new_tokens <= longest,
    )


def _typed_lines() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  input() then edits lines and remembers them
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        yield line


def _piped_lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        fix = "convert it to UTF-8, for example with iconv"
        raise InputError("data.encoding", "standard input is not valid UTF-8", found=str(error), fix=fix) from error
