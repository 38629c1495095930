"""Collects what is wrong with the data: all of it is counted, the first of each kind is kept and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tunesmith.errors import InputError, Problem
from tunesmith.registry import Fault

SHOWN_PER_CODE = 20
LEFT_OUT = "data.left_out"


class Findings:
    """Problems of rows; with `skip`, their rows go to `rejected` (a jsonl file) and the run goes on without them."""

    def __init__(self, skip: bool = False, rejected: Path | None = None) -> None:
        self.skip = skip
        self.counts: dict[str, int] = {}
        self.num_rejected = 0
        self.num_left_out: dict[str, int] = {}
        """Rows that the spec leaves out, by reason; no problem."""
        self._problems: dict[str, list[Problem]] = {}
        self._path = rejected
        self._file: TextIO | None = None
        self._begun = False

    def add(self, problem: Problem, row: dict[str, Any] | None = None) -> None:
        """Notes a problem and, when rows are skipped, the row that has it."""
        self.counts[problem.code] = self.counts.get(problem.code, 0) + 1
        kept = self._problems.setdefault(problem.code, [])
        if len(kept) < SHOWN_PER_CODE:
            kept.append(problem)
        if self.skip:
            self.num_rejected += 1
            self._write({**vars(problem), "row": row})

    def add_fault(self, fault: Fault, where: str, row: dict[str, Any] | None = None) -> None:
        """Notes what a task found wrong with the row at `where`; a row that it was told to leave out is only counted and listed."""
        if fault[0] != LEFT_OUT:
            self.add(Problem(fault[0], fault[1], where, fault[2], fault[3]), row)
            return
        self.num_left_out[fault[1]] = self.num_left_out.get(fault[1], 0) + 1
        self._write({"code": LEFT_OUT, "problem": fault[1], "where": where, "found": fault[2], "row": row})

    def _write(self, record: dict[str, Any]) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # rows are rejected as they are read, and again as they are encoded
            self._file = self._path.open("a" if self._begun else "w", encoding="utf-8")
            self._begun = True
        self._file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    @property
    def problems(self) -> list[Problem]:
        """The problems kept, those of one code together."""
        return [problem for kept in self._problems.values() for problem in kept]

    def close(self) -> None:
        """Ends the file of rejected rows."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def tally(self) -> str:
        """How many rows were left out, by code."""
        return ", ".join(f"{count} {code}" for code, count in self.counts.items()) or "no row was rejected"

    def raise_with(self, error: InputError) -> NoReturn:
        """Raises an error together with everything found before it, unless bad rows are to be skipped."""
        if self.skip or not self.counts:
            raise error
        self.close()
        counts = dict(self.counts)
        for code, count in error.counts.items():
            counts[code] = counts.get(code, 0) + count
        raise InputError.from_problems([*self.problems, *error.problems], counts) from error

    def raise_if_any(self) -> None:
        """Raises everything found as one InputError, unless bad rows are to be skipped."""
        if self.counts and not self.skip:
            self.close()
            raise InputError.from_problems(self.problems, self.counts)
