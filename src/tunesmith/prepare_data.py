"""From the data of a spec to rows that are read, checked and split, and to what follows from them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.findings import Findings
from tunesmith.data.lint import (
    describe_shared,
    hashes_of,
    lint_contradictions,
    lint_ids,
    lint_labels,
    lint_leaks,
    num_duplicates,
    text_hashes,
)
from tunesmith.data.origins import Opened, open_sources
from tunesmith.data.rows import RowFacts, Rows, decide_columns, read_split, row_facts
from tunesmith.data.split import share_of, split_rows
from tunesmith.errors import InputError
from tunesmith.models.catalog import find_model
from tunesmith.models.load import load_config, pretrained_labels
from tunesmith.registry import TASKS, Decision, Task
from tunesmith.resolve import Resolved
from tunesmith.runs.directory import RunDirectory
from tunesmith.spec import NewModelSpec, RunSpec


@dataclass
class PreparedData:
    """The rows of each split, checked, and what was decided from them."""

    resolved: Resolved
    task: Task
    opened: Opened
    columns: dict[str, str]
    facts: RowFacts
    rows: dict[str, Rows]
    findings: Findings
    work: tempfile.TemporaryDirectory[str]
    """Where the Arrow files of this process live; gone with it."""
    num_duplicates: int

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Files and hashes of the data, and the number of rows of each split."""
        return {"files": self.opened.fingerprint, "rows": {split: len(rows) for split, rows in self.rows.items()}}


def prepare_data(spec: RunSpec, rejected: Path | None = None) -> PreparedData:
    """Reads and checks every row, and decides what follows from them.

    Raises InputError with everything that is wrong with the data, unless bad rows are to be skipped.
    """
    task = TASKS.get(spec.task.name)
    opened = open_sources(spec.data, task.running_text)
    columns, decisions = decide_columns(opened, spec.data, task.roles)
    resolved = Resolved(spec).decide([*opened.decisions, *decisions, Decision("data.columns", columns, "the columns read")])
    resolved = resolved.decide(task.decide_reading(spec.task, opened, columns))
    section = resolved.spec.task
    findings = Findings(spec.data.on_bad_row == "skip", rejected)
    work = tempfile.TemporaryDirectory(prefix="tunesmith-")
    try:
        rows = {
            split: read_split(split, origins, columns, task, section, Path(work.name), findings)
            for split, origins in opened.origins.items()
        }
        if changed := opened.changed():
            fix = "wait until nothing writes to it any more"
            raise InputError("data.changed", "a data file changed while it was read", where=", ".join(changed), fix=fix)
        left_out: dict[str, Any] = getattr(spec.task, "leave_out", {})
        if left_out and not findings.num_left_out:
            keys = ", ".join(f"{name}: {value}" for name, value in left_out.items())
            fix = "correct the key or the value, or leave it out"
            raise InputError("spec.no_effect", "no row or message is left out by it", where="task.leave_out", found=keys, fix=fix)
        if not len(rows["train"]):
            findings.raise_if_any()
            raise InputError("data.too_small", "no training row is left", where="data.train", found=findings.tally())
        return _check_rows(resolved, task, opened, columns, rows, findings, work)
    finally:
        findings.close()


def _check_rows(
    resolved: Resolved,
    task: Task,
    opened: Opened,
    columns: dict[str, str],
    rows: dict[str, Rows],
    findings: Findings,
    work: tempfile.TemporaryDirectory[str],
) -> PreparedData:
    spec = resolved.spec
    labels = () if isinstance(spec.model, NewModelSpec) else pretrained_labels(load_config(find_model(spec.model).path))
    facts = row_facts(rows["train"], task, opened, columns, Path(spec.data.root), labels)
    try:
        decided = resolved.decide(task.decide(spec.task, facts))
    except InputError as error:
        findings.raise_with(error)
    section = decided.spec.task
    texts: dict[str, np.ndarray] = {}
    for split in rows:
        rows[split] = rows[split].select(np.flatnonzero(lint_ids(rows[split], findings)))
        rows[split] = rows[split].select(np.flatnonzero(lint_labels(rows[split], task, section, findings)))
        hashes = text_hashes(rows[split])
        good = lint_contradictions(rows[split], hashes, task, section, findings)
        rows[split], texts[split] = rows[split].select(np.flatnonzero(good)), hashes[good]
    share = share_of(spec.data.validation)
    duplicates = num_duplicates(texts["train"])
    for split in [name for name in rows if name != "train" and not task.running_text]:
        good = lint_leaks(rows["train"], texts["train"], rows[split], texts[split], findings)
        rows["train"], texts["train"] = rows["train"].select(np.flatnonzero(good)), texts["train"][good]
    if share is not None and len(rows["train"]):
        groups = hashes_of(rows["train"], task.together) if task.together else texts["train"]
        _cut_validation(rows, groups, task, section, share, spec.train.seed, findings)
    findings.raise_if_any()
    for split, split_rows_ in rows.items():
        if len(split_rows_) == 0:
            raise InputError(
                "data.too_small",
                f"the {split} set has no rows",
                where=f"data.{split}",
                found=findings.tally(),
                fix="give more rows, or data.validation=none",
            )
    if findings.num_rejected:
        # The rows that are left decide anew: a label that only bad rows had is not a class.
        facts = row_facts(rows["train"], task, opened, columns, Path(spec.data.root), labels)
        decided = resolved.decide(task.decide(spec.task, facts))
        for split in rows:
            rows[split] = rows[split].select(np.flatnonzero(lint_labels(rows[split], task, decided.spec.task, findings)))
    decided = decided.decide([*task.remarks(decided.spec.task, rows["train"]), *describe_shared(rows, task.together)])
    ordered: dict[str, Rows] = {split: rows[split] for split in ("train", "validation", "test") if split in rows}
    return PreparedData(decided, task, opened, columns, facts, ordered, findings, work, duplicates)


def _cut_validation(
    rows: dict[str, Rows], groups: np.ndarray, task: Task, section: Any, share: float, seed: int, findings: Findings
) -> None:
    """Cuts a share off the training rows; those of one of the groups [rows] stay together."""
    num_rows = len(rows["train"])
    labels = rows["train"].dataset["label"] if "label" in rows["train"].dataset.column_names else [()] * num_rows
    strata, every = task.stratify(section, labels)
    names = sorted(set(strata))
    codes = {name: code for code, name in enumerate(names)}
    coded = np.fromiter((codes[stratum] for stratum in strata), dtype=np.int32, count=len(strata))
    rows["train"], rows["validation"] = split_rows(rows["train"], groups, coded, names, share, seed, every, findings)


def check_unchanged(directory: RunDirectory, data: PreparedData) -> None:
    """Refuses to go on when the data is not what the run was trained on.

    Raises InputError.
    """
    before, now = directory.read_json("data.json") or {"files": {}}, data.fingerprint
    if before != now:
        changed = [file["name"] for split, files in now["files"].items() for file in files if file not in before["files"].get(split, [])]
        where = ", ".join(changed or ["the rows of " + ", ".join(now["rows"])])
        raise InputError(
            "data.changed", "the data is not what the run was trained on", where=where, fix="restore the files, or train a new run"
        )
