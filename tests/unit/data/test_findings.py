from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.data.findings import LEFT_OUT, SHOWN_PER_CODE, Findings
from tunesmith.errors import InputError, Problem


def problem(line: int, code: str = "data.empty_text") -> Problem:
    return Problem(code, "the row has no text", f"a.csv:{line}")


def test_nothing_found_raises_nothing() -> None:
    findings = Findings()
    findings.raise_if_any()
    assert findings.problems == []


def test_all_are_counted_and_the_first_of_each_kind_shown() -> None:
    findings = Findings()
    for line in range(1, 101):
        findings.add(problem(line))
    findings.add(problem(7, "data.empty_label"))
    with pytest.raises(InputError) as caught:
        findings.raise_if_any()
    error = caught.value
    assert error.counts == {"data.empty_text": 100, "data.empty_label": 1}
    assert len(error.problems) == SHOWN_PER_CODE + 1
    assert [kept.where for kept in error.problems[:3]] == ["a.csv:1", "a.csv:2", "a.csv:3"]
    assert "101 problems: 100 data.empty_text (the first 20 shown), 1 data.empty_label" in str(error)


def test_problems_of_one_code_stand_together() -> None:
    findings = Findings()
    for line, code in ((1, "data.empty_text"), (2, "data.empty_label"), (3, "data.empty_text")):
        findings.add(problem(line, code))
    assert [kept.code for kept in findings.problems] == ["data.empty_text", "data.empty_text", "data.empty_label"]


def test_skipping_writes_each_row_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rejected.jsonl"
    findings = Findings(skip=True, rejected=path)
    assert not path.exists()
    for line in range(1, 31):
        findings.add(problem(line), {"text": None, "label": "é"})
    findings.raise_if_any()
    findings.close()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == findings.num_rejected == 30
    assert rows[29]["where"] == "a.csv:30"
    assert rows[0]["code"] == "data.empty_text"
    assert rows[0]["row"] == {"text": None, "label": "é"}


def test_skipping_without_a_file_only_counts() -> None:
    findings = Findings(skip=True)
    findings.add(problem(1), {"text": ""})
    findings.close()
    assert findings.num_rejected == 1


def test_rows_found_after_the_file_was_closed_are_added_to_it(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_text("of an earlier run\n")
    findings = Findings(skip=True, rejected=path)
    findings.add(Problem("data.empty_text", "the row has no text", "a.csv:1"), {"text": ""})
    findings.close()
    findings.add_fault((LEFT_OUT, "longer than max_length", "99 tokens", ""), "a.csv:2", {"text": "long"})
    findings.close()
    assert [json.loads(line)["where"] for line in path.read_text().splitlines()] == ["a.csv:1", "a.csv:2"]
    assert findings.num_left_out == {"longer than max_length": 1}
