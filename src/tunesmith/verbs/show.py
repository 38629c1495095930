"""Lines for people: decisions, data, metrics, rows as the model sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.registry import Decision

if TYPE_CHECKING:
    from tunesmith.prepare import PreparedData

MAX_VALUE = 60
MAX_CLASSES = 60


def decision_lines(decisions: Iterable[Decision]) -> list[str]:
    """What was decided, and why."""
    lines = ["decided:"]
    for decision in decisions:
        value = str(decision.value)
        lines.append(f"  {decision.field} = {value if len(value) <= MAX_VALUE else value[:MAX_VALUE] + '...'}   ({decision.because})")
    return lines


def rejected_lines(data: PreparedData) -> list[str]:
    """How many rows were left out, and why."""
    if not data.findings.num_rejected:
        return []
    return [f"rows left out, listed in rejected.jsonl: {data.findings.tally()}"]


def metric_lines(split: str, result: dict[str, Any]) -> list[str]:
    """Metrics of a split with their 95% intervals, then each class."""
    lines = [f"{split}, {result['num_rows']:,} rows:"]
    intervals = result.get("intervals", {})
    for name, value in result["metrics"].items():
        interval = f"   [{intervals[name][0]:.4f}, {intervals[name][1]:.4f}]" if name in intervals else ""
        lines.append(f"  {name:<18} {value:.4f}{interval}")
    per_class = result.get("per_class", {})
    if per_class:
        width = min(max(map(len, per_class)), 30)
        lines.append(f"  {'':<{width}}  precision  recall     f1  support")
        for label, scores in list(per_class.items())[:MAX_CLASSES]:
            numbers = f"{scores['precision']:9.3f}  {scores['recall']:6.3f}  {scores['f1']:5.3f}  {scores['support']:7,}"
            lines.append(f"  {label[:width]:<{width}}  {numbers}")
    return lines


def confusion_lines(result: dict[str, Any]) -> list[str]:
    """The confusion matrix of up to a dozen classes."""
    matrix = result.get("confusion_matrix")
    if matrix is None or len(matrix["labels"]) > 12:
        return []
    labels = [label[:12] for label in matrix["labels"]]
    width = max(7, *map(len, labels))
    lines = ["  rows true, columns predicted:", "  " + " " * width + "".join(f" {label:>{width}}" for label in labels)]
    for label, row in zip(labels, matrix["rows_true_columns_predicted"], strict=True):
        lines.append(f"  {label:<{width}}" + "".join(f" {count:>{width},}" for count in row))
    return lines


def quantile_line(lengths: Sequence[int]) -> str:
    """Quantiles of lengths in tokens."""
    import numpy as np

    names = ("shortest", "5%", "25%", "median", "75%", "95%", "99%", "longest")
    values = np.quantile(np.asarray(lengths), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)).astype(int)
    return ", ".join(f"{name} {value:,}" for name, value in zip(names, values, strict=True))


def prediction_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One prediction a line: what was predicted, how surely, and the text."""
    lines = []
    for row in rows:
        if "value" in row:
            head = f"{row['value']:.4f}"
        elif "label" in row:
            head = f"{row['label']}\t{row['score']:.4f}"
        else:
            head = ", ".join(f"{label} {row['scores'][label]:.2f}" for label in row["labels"]) or "no label"
        text = row["text"] + (f" | {row['pair']}" if "pair" in row else "")
        lines.append(f"{head}\t{' '.join(text.split())}")
    return lines
