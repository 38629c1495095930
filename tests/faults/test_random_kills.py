"""Killed at random moments, no run and no checkpoint is lost, and the end has the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from kills import SCENARIOS, kill_runs, sources, subject

KILLS_OF_EACH = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_random_moments(name: str, tmp_path: Path) -> None:
    tally = kill_runs(subject(name, sources(tmp_path / "sources")), tmp_path / "runs", KILLS_OF_EACH, seed=0)
    assert tally.kills == KILLS_OF_EACH
    assert tally.harm == []
