"""What a model says of a question: its best spans, put together from the windows of the context, and whether there is an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.encode import Examples, JoinedRows
from tunesmith.metrics.question_answering import AnswerMeter
from tunesmith.tasks.question_answering.rows import references
from tunesmith.tasks.question_answering.section import QuestionAnsweringSpec

if TYPE_CHECKING:
    import torch

Span = tuple[float, int, int]
"""Its score (the logits of its first and last token together), and where in the context it begins and ends."""


@dataclass(frozen=True)
class Window:
    """What is kept of a window."""

    spans: list[Span]
    """The best, from the best."""
    log_sum: float
    """Logarithm of the sum of the exponentials of the scores of all its spans."""
    none: float
    """The score of no answer."""
    threshold: float | None
    """By how much that must exceed the best span's; None where every question is answered."""


def best_spans(
    logits: torch.Tensor, first: torch.Tensor, num_context: torch.Tensor, longest: int, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `most` best spans of at most `longest` tokens among those of the context, first to first + num_context: scores, first and last
    token [windows, most], and the log-sum-exp [windows] of the scores of all; logits are [windows, tokens, start and end]."""
    import torch

    places = torch.arange(logits.shape[1], device=logits.device)
    inside = (places >= first[:, None]) & (places < (first + num_context)[:, None])
    start, end = logits.masked_fill(~inside[..., None], -torch.inf).unbind(-1)
    width = min(longest, logits.shape[1])
    ends = torch.nn.functional.pad(end, (0, width - 1), value=-torch.inf).unfold(1, width, 1)
    scores = (start[..., None] + ends).flatten(1)  # [windows, tokens x width]
    best, at = scores.topk(min(most, scores.shape[1]))
    begins = at // width
    return best, begins, begins + at % width, scores.logsumexp(1)


def windows_of(section: QuestionAnsweringSpec, logits: torch.Tensor, threshold: float | None, examples: Any, most: int) -> list[Window]:
    """What is kept of each window of a batch, from logits [windows, tokens, start and end]."""
    import torch

    columns = examples.columns
    first, cls = (torch.tensor(columns[name], device=logits.device) for name in ("first", "cls"))
    num_context = torch.tensor([len(begins) for begins in columns["begin"]], device=logits.device)
    found = best_spans(logits, first, num_context, int(section.max_answer_length), most)
    scores, begins, ends, log_sums = (tensor.tolist() for tensor in found)
    none = logits[torch.arange(len(logits)), cls].sum(-1).tolist()
    windows = []
    for index, offset in enumerate(columns["first"]):
        begin, end = columns["begin"][index], columns["end"][index]
        spans = [
            (score, begin[start - offset], end[last - offset])
            for score, start, last in zip(scores[index], begins[index], ends[index], strict=True)
            if score > -np.inf
        ]
        windows.append(Window(spans, log_sums[index], none[index], threshold))
    return windows


def join_spans(windows: Sequence[Window], context: str) -> list[Span]:
    """The best spans of all windows, each once, without white space around them."""
    found: dict[tuple[int, int], float] = {}
    for score, start, end in sorted((span for window in windows for span in window.spans), reverse=True):
        text = context[start:end]
        start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
        if start < end:
            found.setdefault((start, end), score)
    return [(score, start, end) for (start, end), score in found.items()]


def outputs(section: QuestionAnsweringSpec, logits: torch.Tensor, tuned: dict[str, Any], examples: Any) -> list[Window]:
    """What each window says of its part of the context."""
    said = section.null_score_diff_threshold
    threshold = said if isinstance(said, float) else None if said == "none" else (tuned.get("thresholds") or [0.0])[0]
    return windows_of(section, logits, threshold, examples, section.n_best)


def join(section: QuestionAnsweringSpec, windows: list[Window], row: dict[str, Any]) -> dict[str, Any]:
    """`{id, question, answer, start, end, score}`, with `no_answer_score` where there may be none, and `n_best` if asked for.

    Scores are probabilities: the shares of a span and of no answer in the exponentials of the scores of all spans.
    """
    spans = join_spans(windows, row["context"])
    threshold, none = windows[0].threshold, min(window.none for window in windows)
    log_sum = np.logaddexp.reduce([window.log_sum for window in windows] + ([] if threshold is None else [none]))

    def shown(span: Span) -> dict[str, Any]:
        score, start, end = span
        return {"answer": row["context"][start:end], "start": start, "end": end, "score": float(np.exp(score - log_sum))}

    has_answer = bool(spans) and (threshold is None or none - spans[0][0] <= threshold)
    nothing = {"answer": "", "start": None, "end": None, "score": float(np.exp(none - log_sum)) if threshold is not None else 0.0}
    found = {**({"id": row["id"]} if row.get("id") is not None else {}), "question": row["question"]}
    found |= shown(spans[0]) if has_answer else nothing
    if threshold is not None:
        found["no_answer_score"] = float(np.exp(none - log_sum))
    if section.n_best > 1:
        found["n_best"] = [shown(span) for span in spans[: section.n_best]]
    return found


class WindowMeter:
    """F1 and exact match of rows, put together from their windows."""

    def __init__(self, section: QuestionAnsweringSpec, thresholds: Sequence[float] | None = None) -> None:
        self.section = section
        threshold: Any = section.null_score_diff_threshold
        self._answers = AnswerMeter(thresholds[0] if thresholds and threshold == "validation" else threshold)
        self._joined = JoinedRows()

    def update(self, logits: torch.Tensor, labels: torch.Tensor, examples: Examples) -> None:
        """Adds logits [windows, tokens, start and end]; the answers are those of the rows."""
        for number, windows in self._joined.add(examples, windows_of(self.section, logits, None, examples, 1)):
            row = examples.encoded.rows.dataset[number]
            none = min(window.none for window in windows)
            score, start, end = next(iter(join_spans(windows, row["context"])), (none, 0, 0))
            self._answers.add(row["context"][start:end], none - score, references(row["label"]))

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """What `AnswerMeter` reports."""
        return self._answers.compute(intervals)


def metrics(section: QuestionAnsweringSpec) -> dict[str, bool]:
    """What is reported; greater is better."""
    kinds = ["", "HasAns_", "NoAns_"] if section.version_2_with_negative is True else [""]
    return {f"{kind}{name}": True for kind in kinds for name in ("f1", "exact_match")}
