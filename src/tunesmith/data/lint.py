"""Checks that need the whole data: labels, contradictions, rows on both sides of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.data.findings import Findings
from tunesmith.data.rows import Rows
from tunesmith.errors import Problem
from tunesmith.registry import Decision, Task

NOT_READ = ("id", "label", "file", "line")
"""Canonical columns that the model does not read."""
CONFLICT_FIX = "decide which is right; data.on_bad_row=skip leaves all of them out"


def lint_labels(rows: Rows, task: Task, section: Any, findings: Findings) -> np.ndarray:
    """Runs the task's own checks on every row; returns a mask [rows] of the good ones."""
    good = np.ones(len(rows), dtype=bool)
    for start, batch in rows.batches():
        for offset, fault in task.lint(section, batch):
            good[start + offset] = False
            row = {key: values[offset] for key, values in batch.items()}
            findings.add_fault(fault, rows.place(start + offset), row)
    return good


def text_hashes(rows: Rows) -> np.ndarray:
    """A 64-bit hash [rows] of what the model reads in each row, computed once."""
    if rows.hashes is None:
        rows.hashes = hashes_of(rows, [name for name in rows.dataset.column_names if name not in NOT_READ])
    return rows.hashes


def label_hashes(rows: Rows) -> np.ndarray:
    """A 64-bit hash [rows] of each row's label cell; of nothing where rows have none."""
    return hashes_of(rows, ["label"]) if "label" in rows.dataset.column_names else np.zeros(0, dtype=np.uint64)


def target_hashes(rows: Rows, task: Task, section: Any) -> np.ndarray:
    """A 64-bit hash [rows] of what the model learns from each row: two cells may mean the same."""
    hashes = np.empty(len(rows), dtype=np.int64)
    for start, batch in rows.batches():
        hashes[start : start + len(batch["label"])] = [hash(repr(task.target(section, cell))) for cell in batch["label"]]
    return hashes


def hashes_of(rows: Rows, names: Sequence[str]) -> np.ndarray:
    """A 64-bit hash [rows] of what stands in these columns."""
    hashes = np.empty(len(rows), dtype=np.uint64)
    for start, batch in rows.batches():
        for offset, values in enumerate(zip(*(batch[name] for name in names), strict=True)):
            digest = hashlib.blake2b("\0".join(map(str, values)).encode("utf-8", "surrogatepass"), digest_size=8)
            hashes[start + offset] = int.from_bytes(digest.digest(), "little")
    return hashes


def lint_ids(rows: Rows, findings: Findings) -> np.ndarray:
    """Finds rows with the id of an earlier one; returns a mask [rows] of the others."""
    good = np.ones(len(rows), dtype=bool)
    if "id" not in rows.dataset.column_names:
        return good
    first: dict[str, int] = {}
    for index, name in enumerate(rows.dataset["id"]):
        if name is not None and first.setdefault(name, index) != index:
            good[index] = False
            found, fix = (
                f"{name[:60]!r}, as {rows.place(first[name])}",
                "give each row an id of its own, or data.on_bad_row=skip",
            )
            problem = Problem("data.repeated_id", "the id is that of an earlier row", rows.place(index), found, fix)
            findings.add(problem, rows.dataset[index] if findings.skip else None)
    return good


def lint_contradictions(rows: Rows, texts: np.ndarray, task: Task, section: Any, findings: Findings) -> np.ndarray:
    """Finds identical texts with different labels; returns a mask [rows] of the rows without that problem."""
    good = np.ones(len(rows), dtype=bool)
    if "label" not in rows.dataset.column_names or not len(rows):
        return good
    labels = target_hashes(rows, task, section)
    order = np.argsort(texts, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(texts[order]) != 0, True])
    for repeated in np.flatnonzero(np.diff(starts) > 1):
        group = order[starts[repeated] : starts[repeated + 1]]
        if len(np.unique(labels[group])) < 2:
            continue
        good[group] = False
        shown = [rows.dataset[int(index)] for index in group[:5]]
        same = next((place for place, labels in enumerate(zip(*(row["label"] for row in shown), strict=False)) if len(set(labels)) > 1), 0)
        said = [("..., " if same else "") + ", ".join(row["label"][same:])[:60] for row in shown]
        found = "; ".join(f"{rows.place(index)} says {text}" for index, text in zip(group, said, strict=False))
        findings.add(
            Problem("data.conflicting_labels", "the same text has different labels", rows.place(group[0]), found, CONFLICT_FIX), shown[0]
        )
        if findings.skip:
            for index in group[1:]:
                row = rows.dataset[int(index)]
                findings.add(Problem("data.conflicting_labels", "the same text has different labels", rows.place(index), found), row)
    return good


def lint_leaks(train: Rows, train_texts: np.ndarray, other: Rows, other_texts: np.ndarray, findings: Findings) -> np.ndarray:
    """Finds training rows whose text also stands in another split; returns a mask [training rows] of the others."""
    leaking = np.isin(train_texts, other_texts)
    if not leaking.any():
        return ~leaking
    first = {int(text): index for index, text in reversed(list(enumerate(other_texts)))}
    for index in np.flatnonzero(leaking):
        place, row = other.place(first[int(train_texts[index])]), train.dataset[int(index)]
        findings.add(
            Problem(
                "data.leak",
                f"a row of the {other.split} set also stands in the training set",
                train.place(index),
                f"the same text as {place}: {next(iter(row.values()))[:60]!r}",
                "remove one of them; data.on_bad_row=skip leaves it out of the training set",
            ),
            row if findings.skip else None,
        )
    return ~leaking


def describe_shared(rows: dict[str, Rows], names: Sequence[str]) -> list[Decision]:
    """How many rows of the other splits are like a training row in these columns; nothing where there are none."""
    if not names:
        return []
    train = hashes_of(rows["train"], names)
    shared = {split: np.flatnonzero(np.isin(hashes_of(rows[split], names), train)) for split in rows if split != "train"}
    what = " and ".join(names)
    return [
        Decision(
            f"{split} rows whose {what} is trained on",
            f"{len(found):,} of {len(rows[split]):,}",
            f"scores on them may be higher than on a {what} that is new; the first is {rows[split].place(found[0])}",
        )
        for split, found in shared.items()
        if len(found)
    ]


def num_duplicates(texts: np.ndarray) -> int:
    """Rows whose text stands in an earlier row."""
    return len(texts) - len(np.unique(texts))
