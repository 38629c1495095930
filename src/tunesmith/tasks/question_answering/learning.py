"""What the model reads and learns: a question with windows of its context, and where the answer begins and ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.windows import split_windows
from tunesmith.errors import InputError
from tunesmith.models.load import ensure_pad_token
from tunesmith.registry import Decision, Fault
from tunesmith.tasks.question_answering.rows import NO_ANSWER, parse_answer
from tunesmith.tasks.question_answering.section import QuestionAnsweringSpec

if TYPE_CHECKING:
    import torch

CARRIED = ("cls", "first", "begin", "end")
"""Where a window's first token of no answer and of the context are, and where in the context each of its tokens begins and ends."""
USUAL_ANSWER_LENGTH = 30
"""As in transformers' run_qa.py."""
LEAST_CONTEXT = 8
"""Tokens of a context that must fit beside its question."""
LABELS = ("start", "end")
TokenSpan = tuple[int, int]


def decide(section: QuestionAnsweringSpec, facts: Any) -> list[Decision]:
    """Whether questions may have no answer, and how that is told. Raises InputError for settings that would have no effect."""
    counts: Counter[tuple[str, ...]] = facts.label_counts
    none, all_rows = counts[(NO_ANSWER,)], sum(counts.values())
    decisions = []
    negative = section.version_2_with_negative
    if negative == "auto":
        negative = none > 0
        said = f"{none:,} of {all_rows:,} training questions have no answer"
        decisions.append(Decision("task.version_2_with_negative", negative, said if none else "every training question has an answer"))
    elif negative and not none:
        problem, fix = "no training question is without an answer: the model would not learn it", "leave it out, or add such questions"
        raise InputError("spec.no_effect", problem, where="task.version_2_with_negative", found="true", fix=fix)
    threshold = section.null_score_diff_threshold
    if threshold == "auto":
        because = "chosen for f1 on the validation set; 0 without one" if negative else "every question is answered"
        decisions.append(Decision("task.null_score_diff_threshold", "validation" if negative else "none", because))
    elif negative == (threshold == "none"):
        code, problem = "spec.no_effect", "there is nothing to decide where every question has an answer"
        if negative:
            code, problem = "spec.conflict", "without a threshold no question can be left without an answer"
        raise InputError(code, problem, where="task.null_score_diff_threshold", found=str(threshold), fix="leave it out")
    return decisions


def decide_tokens(section: QuestionAnsweringSpec, rows: Any, tokenizer: Any) -> list[Decision]:
    """The longest answer that is given."""
    if section.max_answer_length != "auto":
        return []
    longest = 0
    for _, batch in rows.batches():
        texts = [parse_answer(cell[0])[1] for cell in batch["label"] if cell != [NO_ANSWER]]
        if texts:
            longest = max(longest, *map(len, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
    because = f"the longest training answer has {longest} tokens"
    return [Decision("task.max_answer_length", max(longest, USUAL_ANSWER_LENGTH), because)]


def head(section: QuestionAnsweringSpec) -> dict[str, Any]:
    """Two outputs a token."""
    return {"num_labels": 2, "id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}


def fit_tokenizer(section: QuestionAnsweringSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token, where the tokenizer has none. Raises InputError for a tokenizer that does not say where its tokens stand."""
    if not tokenizer.is_fast:
        found, fix = type(tokenizer).__name__, "a checkpoint with a tokenizer.json"
        raise InputError(
            "model.tokenizer", "the tokenizer does not say where in a text its tokens stand", where="model.name", found=found, fix=fix
        )
    return ensure_pad_token(tokenizer, model)


def source(section: QuestionAnsweringSpec, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The two texts."""
    return {"text": row["question"], "text_pair": row["context"]}


def target(section: QuestionAnsweringSpec, cell: Sequence[str]) -> list[str]:
    """The answers, whatever their order."""
    return sorted(cell)


def encode(section: QuestionAnsweringSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Windows: input_ids, token_type_ids where the model reads them, labels [start, end] (those of the first token, as a rule [CLS],
    where the window does not hold the first answer), and what is carried.

    As in transformers' run_qa.py, but that an answer which no window holds is a fault.
    """
    tokens = tokenizer(batch["question"], batch["context"], truncation=False, padding=False, verbose=False)
    names = ["input_ids", *(["token_type_ids"] if "token_type_ids" in tokens else [])]
    more = (*CARRIED, *(["labels"] if "label" in batch else []), "full_length", "fault", "row")
    columns: dict[str, list[Any]] = {name: [] for name in (*names, *more)}
    for row, encoding in enumerate(tokens.encodings):
        whole = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}
        inside = np.flatnonzero(np.asarray(encoding.sequence_ids, dtype=object) == 1)
        first, after = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(encoding.ids),) * 2
        offsets = np.asarray(encoding.offsets[first:after], dtype=np.int64).reshape(-1, 2)
        answer, fault = _answer(batch["label"][row] if "label" in batch else [NO_ANSWER], offsets)
        windows, no_room = _windows(len(encoding.ids), after - first, max_length, section.stride)
        fault = fault or no_room
        if fault is None and answer is not None and not any(start <= answer[0] and answer[1] < end for start, end in windows):
            fault = _too_long(answer, section.stride)
        for start, end in windows[:1] if fault else windows:
            cut = {name: whole[name][:first] + whole[name][first + start : first + end] + whole[name][after:] for name in names}
            for name, values in cut.items():
                columns[name].append(values)
            cls = _place_of_none(cut["input_ids"], tokenizer)
            is_here = answer is not None and start <= answer[0] and answer[1] < end
            if "labels" in columns:
                columns["labels"].append([first + token - start for token in answer] if is_here and answer else [cls, cls])
            begins, ends = offsets[start:end].T.tolist()
            for name, value in zip(CARRIED, (cls, first, begins, ends), strict=True):
                columns[name].append(value)
            columns["full_length"].append(len(cut["input_ids"]))
            columns["fault"].append(fault)
            columns["row"].append(row)
    return columns


def _windows(num_tokens: int, num_context: int, max_length: int, stride: int) -> tuple[list[TokenSpan], Fault | None]:
    """Which tokens of the context each window holds."""
    fix = "shorten the question, raise task.max_length if the model reads more, or data.on_bad_row=skip"
    if not num_context:
        return [(0, 0)], ("data.empty_text", "the context has no token", "the tokenizer knows none of its characters", "correct the row")
    if num_tokens <= max_length:
        return [(0, num_context)], None
    room = max_length - (num_tokens - num_context)
    if room < LEAST_CONTEXT:
        found = f"{num_tokens - num_context} tokens of {max_length} with the special ones"
        return [(0, 1)], ("data.too_long", "the question leaves no room for the context", found, fix)
    return split_windows([1] * num_context, room, stride), None


def _answer(cell: Sequence[str], offsets: np.ndarray) -> tuple[TokenSpan | None, Fault | None]:
    """First and last token of the first answer, those that hold its characters; None where there is no answer."""
    if cell[0] == NO_ANSWER or not len(offsets):
        return None, None
    start, text = parse_answer(cell[0])
    first, last = np.searchsorted(offsets[:, 1], start, "right"), np.searchsorted(offsets[:, 0], start + len(text), "left") - 1
    if first > last:
        return None, ("data.span", "the tokenizer makes nothing of the answer", repr(text)[:80], "correct the row, or data.on_bad_row=skip")
    return (int(first), int(last)), None


def _too_long(answer: TokenSpan, stride: int) -> Fault:
    length = answer[1] - answer[0] + 1
    fix = f"raise task.stride ({stride} now, and at most half of the context in a window) to {length}, or data.on_bad_row=skip"
    return "data.too_long", "no window holds the whole answer", f"{length} tokens", fix


def _place_of_none(ids: list[int], tokenizer: Any) -> int:
    """The token that stands for no answer: [CLS], else the beginning of the text, else the first."""
    special = (token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token in ids)
    token = next(special, None)
    return 0 if token is None else ids.index(token)


def learnt(section: QuestionAnsweringSpec, example: dict[str, Any]) -> list[bool]:
    """The tokens of the answer, or that of no answer."""
    start, end = example["labels"]
    return [start <= token <= end for token in range(len(example["input_ids"]))]


def label_tensor(section: QuestionAnsweringSpec, labels: Sequence[Any], shape: tuple[int, int]) -> torch.Tensor:
    """First and last token of each answer [windows, 2]."""
    import torch

    return torch.tensor(labels)


def forward(section: QuestionAnsweringSpec, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
    """Logits [windows, tokens, start and end] in fp32, those of padding -inf: what a window scores does not depend on its neighbours."""
    from tunesmith.models.outputs import logits_of

    return logits_of(model(**inputs)).float().masked_fill(inputs["attention_mask"][..., None] == 0, float("-inf"))


def loss(section: QuestionAnsweringSpec, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Sum over the windows of the mean of the cross-entropies of start and end."""
    import torch.nn.functional as F  # noqa: N812

    return F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten(), reduction="sum") / 2


def loss_weight(section: QuestionAnsweringSpec, labels: Sequence[Any]) -> float:
    """The number of windows."""
    return float(len(labels))
