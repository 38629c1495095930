"""What a batch of conversations becomes: labels, what is too long, prompts, tokens to look at, and that it can be learnt."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_models import DECODERS, bpe_tokenizer
from tunesmith.data.collate import IGNORED
from tunesmith.errors import InputError
from tunesmith.models.language_model import decode_tokens
from tunesmith.tasks.chat.encoding import encode, prompt
from tunesmith.tasks.chat.presets import CHATML, PRESETS
from tunesmith.tasks.chat.section import ChatSpec
from tunesmith.tasks.chat.template import fit_template

TALK = [
    {"role": "system", "content": "Be fine."},
    {"role": "user", "content": "the first long story of the town"},
    {"role": "assistant", "content": "a good day"},
    {"role": "user", "content": "the second story"},
    {"role": "assistant", "content": "a cold day"},
    {"role": "user", "content": "the third"},
    {"role": "assistant", "content": "a grim day"},
]
WITHOUT_FIRST, WITHOUT_TWO = [TALK[0], *TALK[3:]], [TALK[0], *TALK[5:]]


@pytest.fixture(name="tokenizer")
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.add_special_tokens({"extra_special_tokens": list(CHATML.tokens)})
    tokenizer.chat_template = CHATML.template
    return tokenizer


def batch_of(*conversations: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {"messages": [json.dumps(messages) for messages in conversations]}


def ids_of(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages)["input_ids"])


def only(columns: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: values[0] for name, values in columns.items()}


def test_labels_are_the_answers_in_place(tokenizer: PreTrainedTokenizerFast) -> None:
    row = only(encode(ChatSpec(), batch_of(TALK), tokenizer, 1000))
    assert row["input_ids"] == ids_of(tokenizer, TALK)
    assert row["full_length"] == len(row["input_ids"]) == len(row["labels"])
    assert row["fault"] is None
    assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    said = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    assert said == "a good day<|im_end|>a cold day<|im_end|>a grim day<|im_end|>"


def test_the_first_token_is_never_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    row = only(encode(ChatSpec(train_on="everything"), batch_of(TALK), tokenizer, 1000))
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_a_row_with_nothing_to_learn_is_a_fault_and_its_neighbours_are_not(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}" + CHATML.template
    lone = [{"role": "user", "content": ""}]
    columns = encode(ChatSpec(), batch_of(TALK, lone, TALK), tokenizer, 1000)
    assert [fault and fault[0] for fault in columns["fault"]] == [None, "data.conversation", None]
    assert (columns["input_ids"][1], columns["labels"][1]) == ([], [])
    assert columns["input_ids"][0] == columns["input_ids"][2] == ids_of(tokenizer, TALK)


@pytest.mark.parametrize(("too_long", "code"), [("error", "data.too_long"), ("skip", "data.left_out")])
def test_too_long_is_an_error_or_left_out(tokenizer: PreTrainedTokenizerFast, too_long: Any, code: str) -> None:
    length = len(ids_of(tokenizer, TALK))
    row = only(encode(ChatSpec(too_long=too_long), batch_of(TALK), tokenizer, length - 1))
    assert row["fault"][0] == code
    assert row["fault"][2] == f"{length} tokens, max_length is {length - 1}"
    assert all(choice in row["fault"][3] for choice in ("task.max_length", "drop_turns", "truncate_prompt", "skip"))
    assert (row["input_ids"], row["labels"], row["full_length"]) == ([], [], length)
    assert only(encode(ChatSpec(too_long=too_long), batch_of(TALK), tokenizer, length))["fault"] is None


def test_the_fewest_oldest_turns_are_dropped(tokenizer: PreTrainedTokenizerFast) -> None:
    section = ChatSpec(too_long="drop_turns")
    full, one_less, two_less = (len(ids_of(tokenizer, messages)) for messages in (TALK, WITHOUT_FIRST, WITHOUT_TWO))
    for max_length, kept in ((full, TALK), (full - 1, WITHOUT_FIRST), (one_less, WITHOUT_FIRST), (one_less - 1, WITHOUT_TWO)):
        row = only(encode(section, batch_of(TALK), tokenizer, max_length))
        assert row["input_ids"] == ids_of(tokenizer, kept)
        assert row["full_length"] == full
    row = only(encode(section, batch_of(TALK), tokenizer, two_less - 1))
    assert row["fault"][:2] == ("data.too_long", "the conversation is longer than max_length, even the last question and its answer")


def test_a_last_question_without_an_answer_is_not_all_that_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [*TALK, {"role": "user", "content": "and"}]
    short = [*WITHOUT_TWO, {"role": "user", "content": "and"}]
    row = only(encode(ChatSpec(too_long="drop_turns"), batch_of(talk), tokenizer, len(ids_of(tokenizer, short))))
    assert row["input_ids"] == ids_of(tokenizer, short)
    row = only(encode(ChatSpec(too_long="drop_turns"), batch_of(talk), tokenizer, len(ids_of(tokenizer, short)) - 1))
    assert row["fault"][0] == "data.too_long"


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_the_longest_question_is_cut_at_its_start(tokenizer: PreTrainedTokenizerFast, cut: int) -> None:
    full = len(ids_of(tokenizer, TALK))
    row = only(encode(ChatSpec(too_long="truncate_prompt"), batch_of(TALK), tokenizer, full - cut))
    whole = only(encode(ChatSpec(), batch_of(TALK), tokenizer, full))
    text = tokenizer.decode(row["input_ids"])
    assert full - cut - 1 <= len(row["input_ids"]) <= full - cut
    assert row["full_length"] == full
    question = text.split("user\n")[1].split("<|im_end|>")[0]
    assert question != TALK[1]["content"]
    assert TALK[1]["content"].endswith(question)
    assert text.replace(question, TALK[1]["content"]) == tokenizer.decode(whole["input_ids"])
    learnt = [[label for label in labels if label != IGNORED] for labels in (row["labels"], whole["labels"])]
    assert learnt[0] == learnt[1]


def test_a_cut_keeps_characters_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [{"role": "user", "content": "日本語" * 10}, {"role": "assistant", "content": "a good day"}]
    full = len(ids_of(tokenizer, talk))
    for max_length in range(full - 80, full):
        row = only(encode(ChatSpec(too_long="truncate_prompt"), batch_of(talk), tokenizer, max_length))
        question = tokenizer.decode(row["input_ids"]).split("user\n")[1].split("<|im_end|>")[0]
        assert question
        assert ("日本語" * 10).endswith(question)
        assert max_length - 2 <= len(row["input_ids"]) <= max_length


def test_an_answer_is_never_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = [{"role": "user", "content": "the town"}, {"role": "assistant", "content": "a good day " * 20}]
    row = only(encode(ChatSpec(too_long="truncate_prompt"), batch_of(talk), tokenizer, len(ids_of(tokenizer, talk)) - 10))
    assert row["fault"][:2] == ("data.too_long", "the conversation is longer than max_length, what is not an answer cannot be cut enough")


def test_prompts_end_where_an_answer_starts(tokenizer: PreTrainedTokenizerFast) -> None:
    (ids, reference), (open_ids, none) = prompt(ChatSpec(), batch_of(TALK, TALK[:-1]), tokenizer)
    assert ids == open_ids == tokenizer.apply_chat_template(TALK[:-1], add_generation_prompt=True)["input_ids"]
    assert (reference, none) == ("a grim day", None)
    assert only(encode(ChatSpec(), batch_of(TALK), tokenizer, 1000))["input_ids"][: len(ids)] == ids


def test_a_prompt_that_the_template_refuses_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(InputError, match="no system here") as error:
        prompt(ChatSpec(), batch_of(TALK), tokenizer)
    assert error.value.code == "data.conversation"


def test_tokens_can_be_read(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("the warm story\n<|im_end|>é", add_special_tokens=False)["input_ids"]
    assert decode_tokens(tokenizer, ids) == ["t", "h", "e", "␣warm", "␣story", "↵", "<|im_end|>", "Ã", "©"]


def test_what_is_learnt_is_written_and_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    """Trained on its labels alone, a tiny model writes the answer from the prompt, and generation stops."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(DECODERS["llama"](len(tokenizer)))
    fit_template(ChatSpec(), tokenizer, model)
    talk = [{"role": "user", "content": "the town"}, {"role": "assistant", "content": "a good day"}]
    row = only(encode(ChatSpec(), batch_of(talk), tokenizer, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    for _ in range(60):
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    [(ids, reference)] = prompt(ChatSpec(), batch_of(talk), tokenizer)
    written = model.eval().generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
    assert tokenizer.decode(written) == f"{reference}<|im_end|>"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"answer_pattern": "("}, "should be a regular expression"),
        ({"answer_pattern": r"(\d+)"}, "answer_pattern would have no effect"),
        ({"metrics": ["pattern"]}, "needs answer_pattern"),
        ({"metrics": ["bleu", "bleu"]}, "bleu is said twice"),
        ({"metrics": ["rouge"], "num_generated": 0}, "metrics would have no effect"),
        ({"template": "chatlm"}, "'chatml'"),
        ({"generation": {"temperature": 0.5}}, "without do_sample"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        ChatSpec(**settings)


def test_every_preset_can_be_asked_for() -> None:
    assert [ChatSpec(template=name).template for name in PRESETS] == list(PRESETS)  # type: ignore[arg-type]
