"""What the model reads, learns and answers: encoding, loss, candidates for each mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.blocks import cut_blocks, passages
from tunesmith.data.collate import IGNORED
from tunesmith.data.text import PASSAGE
from tunesmith.errors import InputError
from tunesmith.models.load import ensure_pad_token
from tunesmith.registry import Decision
from tunesmith.tasks.masked_lm.masking import STARTS
from tunesmith.tasks.masked_lm.section import MaskedLMSpec

if TYPE_CHECKING:
    import torch

    from tunesmith.models.token_loss import TokenScores

WRITTEN_MASKS = ("[MASK]", "<mask>")
"""What a text may have where a token is to be filled in, beside the tokenizer's own mask token."""


def decide(section: MaskedLMSpec, facts: Any) -> list[Decision]:
    """Nothing; refuses rows of running text, which has none.

    Raises InputError.
    """
    if section.examples == "rows" and any(PASSAGE in row for row in facts.sample):
        fix = "data.format=lines makes each line a row; or examples: blocks"
        raise InputError("spec.conflict", "running text has no rows", where="task.examples", found="examples: rows", fix=fix)
    return []


def fit_tokenizer(section: MaskedLMSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token; refuses a tokenizer without a mask token, or one that does not tell words where these are hidden whole.

    Raises InputError.
    """
    if model.config.is_encoder_decoder:
        found, fix = type(model).__name__, "start from an encoder, such as bert (`tunesmith models`)"
        raise InputError("model.load", "the model has a decoder, which would read what is hidden", where="model.name", found=found, fix=fix)
    if tokenizer.mask_token_id is None:
        fix = "start from a model that was trained to fill in masks, such as bert (`tunesmith models`)"
        raise InputError("model.tokenizer", "the tokenizer has no mask token", where="model.name", fix=fix)
    if section.masking != "tokens":
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or backend.pre_tokenizer is None:
            raise InputError(
                "model.tokenizer", "the tokenizer does not tell words", where="task.masking", found=section.masking, fix="masking: tokens"
            )
    decisions = ensure_pad_token(tokenizer, model)
    if section.max_length != "auto" and section.max_length <= sum(map(len, _marks(tokenizer))):
        raise InputError("spec.value", "no token of a text fits beside the special ones", where="task.max_length", fix="auto")
    return decisions


def _marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    ids, special = found["input_ids"], found["special_tokens_mask"]
    inner = [place for place, is_special in enumerate(special) if not is_special]
    return (ids[: inner[0]], ids[inner[-1] + 1 :]) if inner else (ids, [])


def encode(section: MaskedLMSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Token ids of each text, where words start, and what `regroup` needs for blocks; special tokens that a text spells out are text."""
    tokens = tokenizer(batch["text"], add_special_tokens=False, truncation=False, padding=False, verbose=False, split_special_tokens=True)
    begins, ends = _marks(tokenizer)
    num_rows, special = len(batch["text"]), len(begins) + len(ends)
    columns: dict[str, list[Any]] = {"input_ids": [list(ids) for ids in tokens["input_ids"]]}
    if section.masking != "tokens":
        columns[STARTS] = [_starts(tokens.word_ids(row)) for row in range(num_rows)]
    columns["fault"] = [
        (
            "data.empty_text",
            "the text has no token",
            repr(text)[:80],
            "the tokenizer knows none of its characters: correct or remove the row",
        )
        if section.examples == "rows" and not ids
        else None
        for text, ids in zip(batch["text"], columns["input_ids"], strict=True)
    ]
    columns["full_length"] = [len(ids) + special for ids in columns["input_ids"]]
    if section.examples == "rows":
        return _wrapped(
            {name: [values[: max_length - special] for values in columns[name]] for name in _token_columns(columns)}, begins, ends
        ) | {name: columns[name] for name in ("fault", "full_length")}
    return {**columns, "passage": passages(batch), "begins": [begins] * num_rows, "ends": [ends] * num_rows}


def _starts(words: Sequence[int | None]) -> list[int]:
    return [int(place == 0 or word is None or word != words[place - 1]) for place, word in enumerate(words)]


def _token_columns(columns: dict[str, list[Any]]) -> list[str]:
    return [name for name in ("input_ids", STARTS) if name in columns]


def _wrapped(columns: dict[str, list[list[int]]], begins: list[int], ends: list[int]) -> dict[str, list[Any]]:
    """The special tokens around each example."""
    marks = {"input_ids": (begins, ends), STARTS: ([1] * len(begins), [1] * len(ends))}
    return {name: [[*marks[name][0], *values, *marks[name][1]] for values in rows] for name, rows in columns.items()}


def regroup(section: MaskedLMSpec, batches: Iterable[dict[str, list[Any]]], max_length: int) -> Iterator[dict[str, list[Any]]]:
    """Blocks of max_length tokens, special ones around each; documents are parted by what stands after a text. Rows are left alone."""
    batches = iter(batches)
    if section.examples == "rows":
        yield from batches
        return
    for batch in batches:
        begins, ends = batch["begins"][0], batch["ends"][0]
        break
    else:
        return

    def parted() -> Iterator[dict[str, list[Any]]]:
        for columns in (batch, *batches):
            yield {**columns, "begins": [[]] * len(columns["row"])}

    for rows, columns in cut_blocks(parted(), max_length - len(begins) - len(ends), _token_columns(batch), end_last=False):
        blocks = _wrapped(columns, begins, ends)
        lengths = [len(ids) for ids in blocks["input_ids"]]
        yield {**blocks, "full_length": lengths, "row": rows, "fault": [None] * len(rows)}


def encode_input(section: MaskedLMSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Token ids of texts with masks; labels are set where a mask stands."""
    texts = list(batch["text"])
    for written in WRITTEN_MASKS:
        texts = [text.replace(written, tokenizer.mask_token) for text in texts]
    ids = [list(row) for row in tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]]
    labels = [[token if token == tokenizer.mask_token_id else IGNORED for token in row] for row in ids]
    fix = f"write {' or '.join(dict.fromkeys((tokenizer.mask_token, *WRITTEN_MASKS)))} where a token is to be filled in"
    faults: list[Any] = []
    for text, row, marked in zip(batch["text"], ids, labels, strict=True):
        if len(row) > max_length:
            faults.append(
                ("data.too_long", "the text is longer than the model reads", f"{len(row)} tokens", f"at most {max_length} tokens")
            )
        elif max(marked) == IGNORED:
            faults.append(("data.no_mask", "the text has no mask", repr(text)[:80], fix))
        else:
            faults.append(None)
    return {"input_ids": ids, "labels": labels, "full_length": [len(row) for row in ids], "fault": faults}


def forward(section: MaskedLMSpec, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> TokenScores:
    """Scores of every predicted token."""
    from tunesmith.models.token_loss import score_tokens

    assert labels is not None
    return score_tokens(model, inputs, labels, shifted=False)


def loss_weight(section: MaskedLMSpec, labels: Sequence[Any]) -> float:
    """The number of predicted tokens; at least 1: of a short text none may be drawn."""
    return float(max(sum(int((np.asarray(row) >= 0).sum()) for row in labels), 1))


@dataclass
class Candidates:
    """The likeliest tokens for each mask of a batch, rows in order."""

    ids: torch.Tensor
    """[masks, top_k]"""
    scores: torch.Tensor
    """Their probabilities, [masks, top_k]."""
    num_masks: list[int]
    """Of each row."""


def candidates(section: MaskedLMSpec, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> Candidates:
    """The likeliest tokens where labels [rows, tokens] are set."""
    from tunesmith.models.token_loss import logits_at

    assert labels is not None
    masks = labels >= 0
    probabilities = logits_at(model, inputs, masks).softmax(-1)
    scores, ids = probabilities.topk(min(section.top_k, probabilities.shape[-1]))
    return Candidates(ids, scores, masks.sum(-1).tolist())


def outputs(section: MaskedLMSpec, found: Candidates, tuned: dict[str, Any], examples: Any) -> list[dict[str, Any]]:
    """`{masks: [[(token id, score), ...], ...]}` for each row."""
    ranked = [list(zip(ids, scores, strict=True)) for ids, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True)]
    taken = iter(ranked)
    return [{"masks": [next(taken) for _ in range(count)]} for count in found.num_masks]


def to_text(section: MaskedLMSpec, tokenizer: Any, text: str, prediction: dict[str, Any]) -> dict[str, Any]:
    """`{filled, masks: [[{token, token_str, score}, ...], ...]}`; `filled` has the likeliest token in the place of each mask."""
    for written in WRITTEN_MASKS:
        text = text.replace(written, tokenizer.mask_token)
    ids = tokenizer(text, verbose=False)["input_ids"]
    best = iter(ranked[0][0] for ranked in prediction["masks"])
    filled = [next(best) if token == tokenizer.mask_token_id else token for token in ids]
    masks = [
        [{"token": token, "token_str": tokenizer.decode([token]), "score": score} for token, score in ranked]
        for ranked in prediction["masks"]
    ]
    return {"filled": tokenizer.decode(filled, skip_special_tokens=True), "masks": masks}
