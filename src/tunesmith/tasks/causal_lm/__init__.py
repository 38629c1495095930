"""Causal language modelling: a decoder learns running text, cut into blocks of which no token is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.data.blocks import CANONICAL, TEXT_ROLE, cut_blocks, passages, read_running_text
from tunesmith.errors import InputError
from tunesmith.models.language_model import LANGUAGE_MODEL
from tunesmith.models.load import ensure_pad_token
from tunesmith.registry import Decision, Task
from tunesmith.spec import Auto, GenerationSpec, NamedSection


class CausalLMSpec(NamedSection):
    """The next token of running text, or of one text a row."""

    name: str = "causal_lm"
    """`causal_lm`."""
    max_length: Annotated[int, Field(gt=1, lt=2**31)] | Auto = "auto"
    """Tokens of a block; the last block of all may be shorter, and nothing is left out."""
    documents: Literal["end_of_text", "joined"] = "end_of_text"
    """`end_of_text` ends each document (a file of running text, a row of anything else) with the tokenizer's end-of-text token and
    begins it with its beginning, if it has one; `joined` puts nothing between them."""
    generation: GenerationSpec = GenerationSpec()
    """How `tunesmith predict` writes on."""


def recognise(opened: Any) -> str | None:
    """Files with nothing but text; a table of one column is one whose delimiter was not found."""
    is_table = any(origin.dialect.format == "csv" for origin in opened.origins["train"])
    return "running text, without columns" if len(opened.names) == 1 and not is_table else None


def fit_tokenizer(section: CausalLMSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token; refuses a tokenizer that cannot end a document."""
    if section.documents == "end_of_text" and tokenizer.eos_token_id is None:
        raise InputError("model.tokenizer", "the tokenizer has no end-of-text token", where="task.documents", fix="task.documents=joined")
    return ensure_pad_token(tokenizer, model)


def encode(section: CausalLMSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Token ids of each text, (file, number) of a passage, and what marks the ends of documents; see `regroup`."""
    ids = tokenizer(batch["text"], add_special_tokens=False, truncation=False, padding=False, verbose=False)["input_ids"]
    num_rows = len(ids)
    begins = [] if section.documents == "joined" else _beginning(tokenizer)
    ends = [] if section.documents == "joined" else [tokenizer.eos_token_id]
    return {
        "input_ids": [list(row) for row in ids],
        "full_length": [len(row) for row in ids],
        "fault": [None] * num_rows,
        "passage": passages(batch),
        "begins": [begins] * num_rows,
        "ends": [ends] * num_rows,
    }


def _beginning(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, for a tokenizer that puts it before a text by itself."""
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    return [tokenizer.bos_token_id] if starts else []


def regroup(section: CausalLMSpec, batches: Iterable[dict[str, list[Any]]], max_length: int) -> Iterator[dict[str, list[Any]]]:
    """Blocks of max_length tokens."""
    for rows, columns in cut_blocks(batches, max_length):
        blocks = columns["input_ids"]
        lengths = [len(block) for block in blocks]
        yield {"input_ids": blocks, "labels": blocks, "full_length": lengths, "row": rows, "fault": [None] * len(blocks)}


def prompt(section: CausalLMSpec, batch: dict[str, list[Any]], tokenizer: Any) -> list[tuple[list[int], str | None]]:
    """The text, to be written on."""
    begins = _beginning(tokenizer)
    ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    return [([*begins, *row], None) for row in ids]


CAUSAL_LM = Task(
    name="causal_lm",
    summary="the next token of running text",
    spec=CausalLMSpec,
    roles=(TEXT_ROLE,),
    recognise=recognise,
    canonical=CANONICAL,
    read=read_running_text,
    decide=lambda section, facts: [],
    fit_tokenizer=fit_tokenizer,
    encode=encode,
    prompt=prompt,
    regroup=regroup,
    running_text=True,
    **LANGUAGE_MODEL,
)
