"""Memory that the kernel refuses, and a process of two that dies, cost no run and no bit: those faults of the table that nothing else here tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from injections import faults, inject
from kills import run_straight, sources, subject


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        ("no memory for an evaluation (RLIMIT_DATA)", "text_classification full"),
        ("no memory for a step (RLIMIT_DATA), then kill -9", "text_classification full"),
        ("one of two processes killed", "text_classification full, two processes"),
        ("torchrun's own process killed", "text_classification full, two processes"),
    ],
)
def test_a_fault_costs_nothing(name: str, scenario: str, tmp_path: Path) -> None:
    places = sources(tmp_path / "sources")
    of, fault = subject(scenario, places), next(fault for fault in faults(places["rows"][0]) if fault.name == name)
    run_straight(of, tmp_path / "runs")
    tally = inject(of, fault, tmp_path / "runs", 1, tmp_path / "runs/straight")
    assert (tally.kills, tally.harm) == (1, [])
