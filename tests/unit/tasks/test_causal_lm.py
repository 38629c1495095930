"""Running text: documents and their ends, blocks of which no token is lost, and what a tokenizer must have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import processors

from tiny_models import bpe_tokenizer, tiny_decoder
from tunesmith.data.blocks import read_running_text
from tunesmith.data.text import PASSAGE
from tunesmith.errors import InputError
from tunesmith.tasks.causal_lm import CausalLMSpec, encode, fit_tokenizer, prompt, regroup

TEXT = {"text": "text"}
END = 0


def encoded(
    rows: list[tuple[int, int | None, list[int]]], begins: tuple[int, ...] = (), ends: tuple[int, ...] = (END,)
) -> dict[str, list[Any]]:
    """Columns of rows (file, number of the passage, ids), as `encode` gives them."""
    return {
        "row": list(range(len(rows))),
        "input_ids": [ids for _, _, ids in rows],
        "passage": [None if passage is None else (file, passage) for file, passage, _ in rows],
        "begins": [list(begins)] * len(rows),
        "ends": [list(ends)] * len(rows),
    }


def blocks(batches: list[dict[str, list[Any]]], max_length: int) -> list[list[int]]:
    return [block for columns in regroup(CausalLMSpec(), batches, max_length) for block in columns["input_ids"]]


def test_a_row_is_a_document_and_following_passages_are_one() -> None:
    rows = [(0, 0, [1, 2]), (0, 1, [3]), (0, 3, [4]), (1, 0, [5]), (1, 1, [6])]
    assert blocks([encoded(rows)], 100) == [[1, 2, 3, END, 4, END, 5, 6, END]]
    assert blocks([encoded([(0, None, [1]), (0, None, [2])])], 100) == [[1, END, 2, END]]
    assert blocks([encoded(rows[:3], begins=(9,))], 100) == [[9, 1, 2, 3, END, 9, 4, END]]
    assert blocks([encoded(rows, ends=())], 100) == [[1, 2, 3, 4, 5, 6]]
    assert blocks([encoded([(0, 1, [1]), (1, 2, [2])])], 100) == [[1, END, 2, END]], "the passage of another file does not follow"


def test_there_may_be_nothing() -> None:
    assert blocks([], 4) == []


@given(
    rows=st.lists(st.lists(st.integers(1, 50), max_size=9), max_size=12),
    max_length=st.integers(2, 12),
    rows_per_batch=st.integers(1, 5),
    passages=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_token_is_lost_whatever_the_batches(rows: list[list[int]], max_length: int, rows_per_batch: int, passages: bool) -> None:
    numbered = [(0, number if passages else None, ids) for number, ids in enumerate(rows)]
    batches = [encoded(numbered[start : start + rows_per_batch]) for start in range(0, len(rows), rows_per_batch)]
    found = blocks(batches, max_length)
    expected = [token for ids in rows for token in ([*ids] if passages else [*ids, END])] + ([END] if passages and rows else [])
    assert [token for block in found for token in block] == expected
    assert all(len(block) == max_length for block in found[:-1])
    assert all(0 < len(block) <= max_length for block in found)


def test_a_block_knows_the_row_it_starts_in() -> None:
    columns = list(regroup(CausalLMSpec(), [encoded([(0, None, [1, 2, 3]), (0, None, [4, 5, 6, 7])])], 4))
    assert [row for part in columns for row in part["row"]] == [0, 1, 1]
    assert [length for part in columns for length in part["full_length"]] == [4, 4, 1]


def test_passages_may_be_blank_and_rows_may_not() -> None:
    assert list(read_running_text(CausalLMSpec(), TEXT, {"text": "\n\n", PASSAGE: 3})) == [{"text": "\n\n", "passage": "3"}]
    assert list(read_running_text(CausalLMSpec(), TEXT, {"text": " a\n\nb "})) == [{"text": " a\n\nb ", "passage": None}]
    (fault,) = read_running_text(CausalLMSpec(), TEXT, {"text": " \n"})
    assert isinstance(fault, tuple)
    assert fault[0] == "data.empty_text"


@pytest.mark.parametrize("bos", [False, True])
def test_documents_begin_as_the_tokenizer_begins_a_text(bos: bool) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = tokenizer.bos_token_id
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])  # type: ignore[assignment]
    batch = {"text": ["a day", "the town"], "file": [0, 0], "passage": [None, "4"]}
    columns = encode(CausalLMSpec(), batch, tokenizer, 100)
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in batch["text"]]
    assert columns["input_ids"] == plain
    assert columns["begins"] == [[start] if bos else []] * 2
    assert columns["ends"] == [[tokenizer.eos_token_id]] * 2
    assert columns["passage"] == [None, (0, 4)]
    joined = encode(CausalLMSpec(documents="joined"), batch, tokenizer, 100)
    assert joined["begins"] == joined["ends"] == [[], []]
    assert [ids for ids, _ in prompt(CausalLMSpec(), batch, tokenizer)] == [[*([start] if bos else []), *ids] for ids in plain]


def test_a_tokenizer_without_an_end_can_only_join() -> None:
    tokenizer, model = bpe_tokenizer(), tiny_decoder("llama")
    tokenizer.eos_token = None
    with pytest.raises(InputError) as caught:
        fit_tokenizer(CausalLMSpec(), tokenizer, model)
    assert caught.value.problems[0].fix == "task.documents=joined"
    tokenizer.pad_token = "a"
    assert fit_tokenizer(CausalLMSpec(documents="joined"), tokenizer, model) == []


def test_blocks_of_one_token_teach_nothing_and_are_refused() -> None:
    with pytest.raises(ValidationError):
        CausalLMSpec(max_length=1)
    assert CausalLMSpec(max_length=2).max_length == 2
