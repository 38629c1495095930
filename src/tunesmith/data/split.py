"""Cuts a validation set off the training rows: stratified, seeded, identical texts kept on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.findings import Findings
from tunesmith.data.rows import Rows
from tunesmith.errors import Problem
from tunesmith.spec import is_share
from tunesmith.spec import share_of as parse_share


def share_of(validation: str | list[str] | float) -> float | None:
    """The share that `data.validation` asks for, or None when it names a source."""
    return parse_share(validation) if isinstance(validation, (str, float)) and is_share(validation) else None


def split_rows(
    rows: Rows, texts: np.ndarray, strata: np.ndarray, names: Sequence[str], share: float, seed: int, every_class: bool, findings: Findings
) -> tuple[Rows, Rows]:
    """Training and validation rows.

    texts [rows] holds a hash of each row's text, strata [rows] the index in `names` of its class or bin. With `every_class` each
    stratum must appear on both sides, and one with a single text is a problem.
    """
    _, first_row, group_of_row, group_sizes = np.unique(texts, return_index=True, return_inverse=True, return_counts=True)
    stratum_of_group = strata[first_row]
    to_validation = np.zeros(len(group_sizes), dtype=bool)
    dropped = np.zeros(len(rows), dtype=bool)
    owed = 0.0
    for stratum in sorted(np.unique(strata).tolist(), key=lambda index: names[index]):
        groups = np.flatnonzero(stratum_of_group == stratum)
        groups = groups[np.argsort(first_row[groups])]
        if len(groups) < 2:
            if every_class:
                dropped |= strata == stratum
                why = "all of one text" if len(groups) else "its texts stand in other classes"
                _report_small_class(rows, np.flatnonzero(strata == stratum), names[stratum], why, findings)
            continue
        # What rounding gave or took in one stratum is evened out in the next, so that the whole has the share asked for.
        wanted = share * int(group_sizes[groups].sum()) + owed
        target = max(round(wanted), 1 if every_class else 0)
        drawn = groups[np.random.default_rng([seed, stratum]).permutation(len(groups))[:-1]]
        taken = np.cumsum(group_sizes[drawn])
        chosen = drawn[: int(np.searchsorted(taken, target)) + 1] if target else drawn[:0]
        to_validation[chosen] = True
        owed = wanted - int(group_sizes[chosen].sum())
    validation = to_validation[group_of_row]
    return rows.select(np.flatnonzero(~validation & ~dropped)), rows.select(np.flatnonzero(validation & ~dropped), "validation")


def _report_small_class(rows: Rows, indices: np.ndarray, name: str, why: str, findings: Findings) -> None:
    found = f"class {name[:60]}: {len(indices)} row{'s' * (len(indices) != 1)}, {why}"
    fix = "add rows of this class, give a validation file, or data.validation=none; data.on_bad_row=skip leaves it out"
    for index in indices[: None if findings.skip else 1]:
        problem = Problem("data.small_class", "the class has too few rows to be split", rows.place(index), found, fix)
        findings.add(problem, rows.dataset[int(index)])


def spread(size: int, most: int) -> np.ndarray:
    """At most so many indices below size, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, size - 1, min(most, size)).astype(int))
