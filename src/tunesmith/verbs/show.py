"""Lines for people: decisions, data, metrics, rows as the model sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.registry import Decision

if TYPE_CHECKING:
    from tunesmith.prepare_data import PreparedData

GREEN, DIM, PLAIN = "\x1b[0;32m", "\x1b[0;2m", "\x1b[0m"
MAX_VALUE = 60
MAX_CLASSES = 60
MAX_SAMPLE = 400


def decision_lines(decisions: Iterable[Decision]) -> list[str]:
    """What was decided, and why."""
    lines = ["decided:"]
    for decision in decisions:
        value = str(decision.value)
        lines.append(f"  {decision.field} = {value if len(value) <= MAX_VALUE else value[:MAX_VALUE] + '...'}   ({decision.because})")
    return lines


def row_lines(data: PreparedData) -> list[str]:
    """How many rows were left out, and why; and how many of those that stay repeat another."""
    lines = [f"{data.num_duplicates:,} training rows repeat an earlier one"] if data.num_duplicates else []
    lines += [f"left out as the spec says: {count:,} ({reason})" for reason, count in data.findings.num_left_out.items()]
    if data.findings.num_rejected:
        lines.append(f"rows left out, listed in rejected.jsonl: {data.findings.tally()}")
    return lines


def trained_lines(pieces: Sequence[str], trained: Sequence[bool], most: int = 400) -> list[str]:
    """Tokens separated by |, the trained ones between « and »; a line for each line of the text.

    On a terminal the trained ones are green and the others dim as well.
    """
    text, inside = "", False
    for piece, is_trained in zip(pieces[:most], trained[:most], strict=True):
        mark = ("\x00" if is_trained else "\x01") if is_trained != inside else "|" if text else ""
        text += mark + piece.replace("↵", "↵\n")
        inside = is_trained
    text += "\x01" if inside else ""
    text += f" ... {len(pieces) - most:,} more" if len(pieces) > most else ""
    on, off = (f"{GREEN}«", f"»{DIM}") if sys.stdout.isatty() else ("«", "»")
    lines = text.replace("\x00", on).replace("\x01", off).split("\n")
    return [DIM + lines[0], *lines[1:-1], lines[-1] + PLAIN] if sys.stdout.isatty() else lines


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


def sample_lines(result: dict[str, Any]) -> list[str]:
    """Some answers beside what ought to stand there, and beside those of the model before training."""
    lines = []
    before = result.get("base", {}).get("samples", [None] * len(result.get("samples", [])))
    for sample, base in zip(result.get("samples", []), before, strict=True):
        lines.append(f"  {sample['place']}")
        named = [
            ("asked", sample["prompt"]),
            ("wanted", sample["reference"]),
            ("before", base and base["answer"]),
            ("written", sample["answer"]),
        ]
        for name, text in named:
            if text is not None:
                lines += [f"    {name if not number else '':<8} {line}" for number, line in enumerate(shorten(text).splitlines() or [""])]
    return lines


def shorten(text: str) -> str:
    """The start of a text, for a screen."""
    return text if len(text) <= MAX_SAMPLE else text[:MAX_SAMPLE] + " ..."


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
        first, *more = _lines_of(row)
        lines += [first + (f"   ({row['cut_tokens']} tokens were not read)" if "cut_tokens" in row else ""), *more]
    return lines


def _lines_of(row: dict[str, Any]) -> list[str]:
    if "prediction" in row:
        return [row["prediction"] if row["finished"] else f"{row['prediction']} ..."]
    if "question" in row:
        others = [f"  {other['answer']}\t{other['score']:.4f}" for other in row.get("n_best", [])]
        return [f"{row['answer'] or 'no answer'}\t{row['score']:.4f}\t{' '.join(row['question'].split())}", *others]
    if "answer" in row:
        return [row["answer"] if row["finished"] else f"{row['answer']} ..."]
    if "masks" in row:
        ranked = ["  ".join(f"{found['token_str'].strip()} {found['score']:.4f}" for found in mask) for mask in row["masks"]]
        return [row["filled"], *(f"  {line}" for line in ranked)]
    if "entities" in row:
        found = ", ".join(f"{entity['label']} {entity['text']!r} {entity['score']:.2f}" for entity in row["entities"])
        return [f"{found or 'no entity'}\t{' '.join(row['text'].split())}"]
    if "tags" in row:
        return [" ".join(f"{token}/{tag}" for token, tag in zip(row["tokens"], row["tags"], strict=True))]
    if "embedding" in row:
        head = f"[{', '.join(f'{number:.4f}' for number in row['embedding'][:3])}, ...] {len(row['embedding'])} numbers"
    elif "score" in row and "label" not in row:
        head = f"{row['score']:.4f}"
    elif "value" in row:
        head = f"{row['value']:.4f}"
    elif "label" in row:
        head = f"{row['label']}\t{row['score']:.4f}"
    else:
        head = ", ".join(f"{label} {row['scores'][label]:.2f}" for label in row["labels"]) or "no label"
    text = row["text"] + (f" | {row['pair']}" if "pair" in row else "")
    return [f"{head}\t{' '.join(text.split())}"]
