"""What is trained of a conversation, under chat templates of every shape in use; and which templates are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tiny_models import DECODERS, bpe_tokenizer
from tunesmith.errors import InputError
from tunesmith.tasks.chat.presets import PRESETS
from tunesmith.tasks.chat.section import ChatSpec
from tunesmith.tasks.chat.template import Conversation, encode_conversation, encode_conversations, fit_template

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES: dict[str, tuple[str, str]] = {
    "a system prompt of its own, as Qwen2.5": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}" + CHATML,
        "<|im_end|>",
    ),
    "bos, headers, trimmed turns and a date, as Llama-3": (
        "{{ bos_token }}<|head|>system<|/head|>\n\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>{% for message in messages %}"
        "{{ '<|head|>' + message.role + '<|/head|>\n\n' + message.content | trim + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "a model and no system, as Gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{{ '<|im_start|>' + ('model' if message.role == 'assistant' else message.role) + '\n'"
        " + message.content | trim + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "plain brackets and no generation prompt, as Mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
        "{% else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}{% endfor %}",
        "<|endoftext|>",
    ),
    "an end of text behind the last turn, as Phi-3": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|im_end|>",
    ),
    "roles in plain text, as Zephyr": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' + '\n' }}{% endif %}{% endfor %}",
        "<|endoftext|>",
    ),
    "a space before the end, as Llama-2": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content | trim + ' ' + eos_token }}"
        "{% else %}{{ bos_token + '[INST] ' + message.content | trim + ' [/INST]' }}{% endif %}{% endfor %}",
        " <|endoftext|>",
    ),
}
THINKING = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for message in messages %}{% set thought = '' %}{% set said = message.content %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set said = said.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3: the last answer has its thoughts, or an empty block of them; earlier ones have none."""
FORGETFUL = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|head|>' + message.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '<|/head|>' + message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>' + opened }}{% endif %}"
)
"""As DeepSeek-R1: thoughts are taken out of every answer, but a generation starts with them."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TALK = [user("Was the film good?"), assistant("It was, again: grüß."), user("And\nthe town?"), assistant("Cold.\nAnd 2 friends")]


def tiny_tokenizer(template: str | None, **more: Any) -> PreTrainedTokenizerFast:
    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    special = {"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>"]} if template else {}
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", **special, **more})
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return LlamaForCausalLM(DECODERS["llama"](len(tokenizer)))


def trained_texts(tokenizer: PreTrainedTokenizerBase, conversation: Any) -> list[str]:
    """The text of each run of trained tokens."""
    assert isinstance(conversation, Conversation), conversation
    runs: list[list[int]] = []
    for index, (token, trained) in enumerate(zip(conversation.ids, conversation.trained, strict=True)):
        if trained and not (index and conversation.trained[index - 1]):
            runs.append([])
        if trained:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def assert_generation_agrees(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], conversation: Any) -> None:
    """The ids are upstream's, and before each answer stand just those of its prompt alone."""
    assert conversation.ids == tokenizer.apply_chat_template(messages)["input_ids"]
    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for (start, _), index in zip(conversation.answers, indices[-len(conversation.answers) :], strict=True):
        assert conversation.ids[:start] == tokenizer.apply_chat_template(messages[:index], add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("shape", SHAPES)
def test_just_the_answers_and_their_end_are_trained(shape: str) -> None:
    template, stop = SHAPES[shape]
    tokenizer = tiny_tokenizer(template)
    model = tiny_model(tokenizer)
    fit_template(ChatSpec(), tokenizer, model)
    conversation = encode_conversation(tokenizer, TALK, "all_assistant")
    texts = trained_texts(tokenizer, conversation)
    assert [text.lstrip(" ") for text in texts] == [f"It was, again: grüß.{stop}", f"Cold.\nAnd 2 friends{stop}"]
    assert_generation_agrees(tokenizer, TALK, conversation)
    assert trained_texts(tokenizer, encode_conversation(tokenizer, TALK, "last_assistant")) == texts[1:]
    assert isinstance(conversation, Conversation)
    eos = model.generation_config.eos_token_id  # type: ignore[union-attr]
    assert {conversation.ids[end - 1] for _, end in conversation.answers} <= set(eos if isinstance(eos, list) else [eos])


def test_a_conversation_may_have_a_system_prompt_and_end_with_a_question() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    messages = [{"role": "system", "content": "Be warm."}, *TALK, user("And then?")]
    conversation = encode_conversation(tokenizer, messages, "all_assistant")
    assert trained_texts(tokenizer, conversation) == ["It was, again: grüß.<|im_end|>", "Cold.\nAnd 2 friends<|im_end|>"]
    assert_generation_agrees(tokenizer, messages, conversation)


def test_a_tokenizer_that_writes_spaces_before_words() -> None:
    pieces = ["<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyzACINSTW[/]?.2:,üß\n", "▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = SHAPES["plain brackets and no generation prompt, as Mistral"][0]
    messages = [user("Was the"), assistant("the. town"), user("the"), assistant("And 2")]
    conversation = encode_conversation(tokenizer, messages, "all_assistant")
    assert trained_texts(tokenizer, conversation) == ["the. town</s>", "And 2</s>"]
    assert_generation_agrees(tokenizer, messages, conversation)


def test_everything_is_trained_when_asked_for() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    conversation = encode_conversation(tokenizer, TALK, "everything")
    assert isinstance(conversation, Conversation)
    assert conversation.ids == tokenizer.apply_chat_template(TALK)["input_ids"]
    assert all(conversation.trained)


def test_thoughts_are_trained_where_the_template_keeps_them() -> None:
    tokenizer = tiny_tokenizer(THINKING)
    decisions = fit_template(ChatSpec(), tokenizer, tiny_model(tokenizer))
    assert {decision.field: decision.value for decision in decisions}["start of answers"] == "<think>\n\n</think>\n\n"
    plain, thoughtful = (
        encode_conversation(tokenizer, [user("Why?"), assistant(said)], "all_assistant") for said in ("So.", "<think>\nhm\n</think>\nSo.")
    )
    assert trained_texts(tokenizer, plain) == ["<think>\n\n</think>\n\nSo.<|im_end|>"]
    assert trained_texts(tokenizer, thoughtful) == ["<think>\nhm\n</think>\n\nSo.<|im_end|>"]
    fault = encode_conversation(tokenizer, TALK, "all_assistant")
    assert fault[0] == "data.conversation"  # type: ignore[index]
    assert "message 2 of 4; when it is generated: '<think>" in fault[2]  # type: ignore[index]
    assert "task.train_on=last_assistant" in fault[3]  # type: ignore[index]
    last = encode_conversation(tokenizer, TALK, "last_assistant")
    assert trained_texts(tokenizer, last) == ["<think>\n\n</think>\n\nCold.\nAnd 2 friends<|im_end|>"]
    assert_generation_agrees(tokenizer, TALK, last)


def test_thoughts_that_the_template_takes_out_are_not_lost_silently() -> None:
    tokenizer = tiny_tokenizer(FORGETFUL.replace("opened", "''"))
    whole, cut = (encode_conversation(tokenizer, [user("Why?"), assistant(said)], "all_assistant") for said in ("So.", "hm</think>So."))
    assert trained_texts(tokenizer, whole) == ["So.<|endoftext|>"]
    assert cut[1:3] == ("the chat template leaves out a part of the answer", "'hm</think>So.'")  # type: ignore[index]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (FORGETFUL.replace("opened", r"'<think>\n'"), "not write an answer after the prompt"),
        (CHATML.replace("<|im_end|>", ""), "no token at which generation could stop"),
        (CHATML[: CHATML.index("{% if")], "does not open the assistant's turn"),
        (CHATML.replace("message.content", "'x'"), "does not write answers as they are"),
        ("{{ raise_exception('never') }}", "fails on a question and an answer"),
        ("{% for", "fails on a question and an answer"),
        ({"rag": CHATML}, "fails on a question and an answer"),
    ],
)
def test_a_template_that_fits_no_conversation_is_refused(template: Any, said: str) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=said) as error:
        fit_template(ChatSpec(), tokenizer, tiny_model(tokenizer))
    assert error.value.code == "model.template"
    assert "task.template=chatml" in error.value.problems[0].fix


def test_a_conversation_that_cannot_be_trained_on_says_why() -> None:
    tokenizer = tiny_tokenizer(SHAPES["a model and no system, as Gemma"][0])
    conversations = [
        [{"role": "system", "content": "Be warm."}, *TALK],
        [user("And?")],
        [assistant("Hello."), user("And?")],
        [user("And?"), assistant("One<|im_end|>two")],
        TALK,
    ]
    encoded = encode_conversations(tokenizer, conversations, "all_assistant")
    faults = [fault[:3] for fault in encoded[:-1]]  # type: ignore[index]
    assert faults == [
        ("data.conversation", "the model's chat template refuses the conversation", "TemplateError: System role not supported"),
        ("data.conversation", "the conversation has no answer to learn from", "1 turns"),
        ("data.conversation", "the conversation starts with an answer", "'Hello.'"),
        ("data.conversation", "the answer contains the token that ends it", "'One<|im_end|>two<|im_end|>'"),
    ]
    assert len(trained_texts(tokenizer, encoded[-1])) == 2


def test_a_system_prompt_that_the_template_passes_over_is_a_fault() -> None:
    tokenizer = tiny_tokenizer(CHATML.replace("in messages %}", "in messages if message.role != 'system' %}"))
    system = {"role": "system", "content": "Be warm."}
    fault = encode_conversation(tokenizer, [system, *TALK], "all_assistant")
    assert fault[1:3] == ("the chat template leaves out what the system says", "'Be warm.'")  # type: ignore[index]
    assert isinstance(encode_conversation(tokenizer, TALK, "all_assistant"), Conversation)


def test_a_token_across_the_border_is_a_fault() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["</s>", *letters, "ĊĊ"]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = PRESETS["zephyr"].template
    straddling, sound = encode_conversations(tokenizer, [[user("a"), assistant("\nb")], [user("a"), assistant("b")]], "all_assistant")
    assert straddling[1].startswith("a token stands across the border")  # type: ignore[index]
    assert trained_texts(tokenizer, sound) == ["b</s>"]


def test_without_a_template_the_fix_names_those_there_are() -> None:
    tokenizer = tiny_tokenizer(None)
    with pytest.raises(InputError) as error:
        fit_template(ChatSpec(), tokenizer, tiny_model(tokenizer))
    assert error.value.code == "model.template"
    assert all(name in error.value.problems[0].fix for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_given_to_the_model_and_saved_with_it(name: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(None)
    model = tiny_model(tokenizer)
    before = model.get_input_embeddings().weight.detach().clone()
    decisions = {decision.field: decision.value for decision in fit_template(ChatSpec(template=name), tokenizer, model)}  # type: ignore[arg-type]
    preset = PRESETS[name]
    assert decisions["chat template"] == name
    assert decisions.get("new tokens", "") == ", ".join(preset.tokens)
    weights = model.get_input_embeddings().weight.detach()
    assert weights.shape[0] == len(tokenizer) == before.shape[0] + len(preset.tokens)
    assert weights[: len(before)].equal(before)
    for row in weights[len(before) :]:
        assert (row - before.mean(0)).abs().max() < 1e-3
    stop = preset.end_of_turn if preset.tokens else "<|endoftext|>"
    assert tokenizer.eos_token == stop
    messages = [{"role": "system", "content": "Be warm."}, *TALK]
    conversation = encode_conversation(tokenizer, messages, "all_assistant")
    assert [text.lstrip(" ") for text in trained_texts(tokenizer, conversation)] == [
        f"It was, again: grüß.{stop}",
        f"Cold.\nAnd 2 friends{stop}",
    ]
    assert_generation_agrees(tokenizer, messages, conversation)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert encode_conversation(reloaded, messages, "all_assistant") == conversation
    eos = LlamaForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    assert conversation.ids[conversation.answers[0][1] - 1] in (eos if isinstance(eos, list) else [eos])  # type: ignore[union-attr]


def test_a_preset_in_place_of_the_models_own_is_shown() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    first, *_ = fit_template(ChatSpec(template="zephyr"), tokenizer, tiny_model(tokenizer))
    assert (first.field, first.value) == ("chat template", "zephyr")
    assert first.because.endswith("it replaces the model's own")
    assert "chat template" not in {item.field for item in fit_template(ChatSpec(template="zephyr"), tokenizer, tiny_model(tokenizer))}


def test_embeddings_that_have_room_are_left_alone() -> None:
    tokenizer = tiny_tokenizer(None)
    model = LlamaForCausalLM(DECODERS["llama"](len(tokenizer) + 8))
    fields = {decision.field for decision in fit_template(ChatSpec(template="chatml"), tokenizer, model)}
    assert "new tokens" in fields
    assert "embeddings" not in fields
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 6


def test_generation_stops_where_answers_end_and_padding_is_another_token() -> None:
    tokenizer = tiny_tokenizer(CHATML, pad_token="<|im_end|>")
    model = tiny_model(tokenizer)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    decisions = {decision.field: decision.value for decision in fit_template(ChatSpec(), tokenizer, model)}
    assert decisions["generation_config.eos_token_id"] == [0, stop]
    assert decisions["pad token"] == tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.pad_token_id == model.config.pad_token_id == 0  # type: ignore[union-attr]
    assert fit_template(ChatSpec(), tokenizer, model) == []


@pytest.mark.parametrize(("after", "agrees"), [("", True), (r" + '\n'", False)])
def test_a_generation_block_is_compared_with_what_is_trained(after: str, agrees: bool) -> None:
    block = "{% generation %}{{ message.content + '<|im_end|>'AFTER }}{% endgeneration %}".replace("AFTER", after)
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
        + block
        + "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = tiny_tokenizer(template)
    decisions = {decision.field: decision.value for decision in fit_template(ChatSpec(), tokenizer, tiny_model(tokenizer))}
    assert decisions.get("trained tokens") == (None if agrees else "x<|im_end|>")
    if agrees:
        upstream = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
        assert [bool(token) for token in upstream] == encode_conversation(tokenizer, TALK, "all_assistant").trained  # type: ignore[union-attr]


def test_a_date_is_shown() -> None:
    tokenizer = tiny_tokenizer(SHAPES["bos, headers, trimmed turns and a date, as Llama-3"][0])
    assert "date" in {decision.field for decision in fit_template(ChatSpec(), tokenizer, tiny_model(tokenizer))}


def test_bos_is_what_the_template_says() -> None:
    from tokenizers.processors import TemplateProcessing

    def leading(template: str) -> tuple[int, set[str]]:
        tokenizer = tiny_tokenizer(template)
        begin = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])  # type: ignore[assignment]
        assert tokenizer("a")["input_ids"][0] == begin
        fields = {decision.field for decision in fit_template(ChatSpec(), tokenizer, tiny_model(tokenizer))}
        conversation = encode_conversation(tokenizer, TALK, "all_assistant")
        assert_generation_agrees(tokenizer, TALK, conversation)
        return conversation.ids.count(begin), fields  # type: ignore[union-attr]

    assert leading(CHATML)[0] == 0
    assert "bos token" in leading(CHATML)[1]
    assert leading("{{ bos_token }}" + CHATML)[0] == 1
    assert "bos token" not in leading("{{ bos_token }}" + CHATML)[1]
