"""Rates, ratios and tables of the benchmark are what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from bench.compare import chosen, summarise
from bench.peers import CANNOT_RUN, PEERS, VENVS
from bench.processes import run_watched
from bench.table import markdown, ratios_of
from bench.works import WORKS

SETTINGS = {"name": "w", "kind": "train", "steps": 5, "batch_size": 4, "trainable": 10, "bf16": False}
LIMIT = {"operations": 5e9, "tokens_per_step": 100, "gflops": 10.0}


def record(**changes: Any) -> dict[str, Any]:
    """Five steps: a slow second each at first, then half a second each."""
    ends = [1.0, 2.0, 3.0, 3.5, 4.0]
    whole = {
        "started": 0.0,
        "step_ends": ends,
        "tokens": [100] * 5,
        "losses": [5.0, 4, 3, 2, 1],
        "metrics": {"accuracy": 0.5},
        "trainable": 10,
    }
    return {**whole, "notes": [], **changes}


def test_rates_leave_out_the_first_three_steps() -> None:
    found = summarise(record(), SETTINGS, LIMIT)
    assert found["seconds"] == 0.5
    assert found["seconds_with_first_steps"] == 0.8
    assert found["samples_per_second"] == pytest.approx(8)
    assert found["tokens_per_second"] == 200
    # 1 GFLOP a step in half a second is 2 GFLOP/s, of 10
    assert found["limit_share"] == pytest.approx(0.2)
    assert found["notes"] == []


def test_tokens_are_those_of_the_peers_own_batches() -> None:
    found = summarise(record(tokens=[10, 10, 10, 400, 70]), SETTINGS, LIMIT)
    assert found["tokens_per_second"] == 470


def test_a_peer_that_trains_something_else_is_noted() -> None:
    assert summarise(record(trainable=11), SETTINGS, LIMIT)["notes"] == ["11 parameters trained, by tunesmith 10"]


def test_a_prediction_is_timed_whole() -> None:
    found = summarise(record(step_ends=[4.0], tokens=[], losses=[]), {**SETTINGS, "kind": "predict"}, LIMIT)
    assert found["seconds"] == 4.0
    assert found["samples_per_second"] == 5
    assert found["tokens_per_second"] == 125
    assert found["limit_share"] == pytest.approx(0.125)


def test_ratios_are_of_the_same_turn() -> None:
    own = {0: {"tokens_per_second": 100.0}, 1: {"tokens_per_second": 300.0}}
    peers = [{"repeat": 1, "tokens_per_second": 100.0}, {"repeat": 0, "tokens_per_second": 50.0}, {"repeat": 2, "tokens_per_second": 1.0}]
    assert ratios_of(peers, own) == [3.0, 2.0]


def test_the_table_shows_ratios_and_failures() -> None:
    good = {"work": "w", "repeat": 0, "peak_mb": 1000.0, "other_processes_percent": 7.0}
    results = [
        {**good, "peer": "tunesmith", **summarise(record(), SETTINGS, LIMIT)},
        {**good, "peer": "trainer-shipped", **summarise(record(step_ends=[1.0, 2.0, 3.0, 4.0, 5.0]), SETTINGS, LIMIT)},
        {"work": "w", "peer": "trl-shipped", "repeat": 0, "error": "ended by signal 9"},
    ]
    machine = {"versions": {"torch": "2"}, "processor": "P", "cores": 2, "memory_gb": 8, "platform": "L"}
    text = markdown(
        [machine, {"work": "w", "summary": "a work", **SETTINGS, **LIMIT}], results, dict.fromkeys(PEERS, "how"), {"other": "no GPU"}
    )
    assert "and fp32 products at these shapes run at 10 GFLOP/s" in text
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "2.00 (2.00 to 2.00)" in lines["trainer-shipped"]
    assert "0.500 (0.500 to 0.500)" in lines["tunesmith"]
    assert "5.000 to 1.000" in lines["tunesmith"]
    assert "accuracy 0.5000" in lines["tunesmith"]
    assert "20%" in lines["tunesmith"]
    assert "failed: ended by signal 9" in lines["trl-shipped"]
    assert "other processes used up to 7%" in text
    assert "other cannot be compared here: no GPU" in text
    assert len({line.count("|") for line in lines.values()}) == 1


def test_unknown_names_are_refused() -> None:
    assert [work.name for work in chosen(["predict"], WORKS, [], "work")] == ["predict"]
    with pytest.raises(SystemExit, match="no such work: sst3; there are minilm-full-sst2"):
        chosen(["sst3"], WORKS, [], "work")


def test_every_work_has_peers_at_their_best_and_as_shipped() -> None:
    for work in WORKS.values():
        variants = {peer.variant for peer in PEERS.values() if peer.name != "tunesmith" and peer.does(work)}
        assert {"shipped", "tuned"} <= variants, work.name
    assert {peer.venv for peer in PEERS.values()} - {""} == set(VENVS)
    assert not set(CANNOT_RUN) & set(PEERS)


def test_memory_of_children_is_counted(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'a = bytearray(300_000_000); [a.count(1) for _ in range(20)]'])"
    )
    watched = run_watched([sys.executable, "-c", program], {}, tmp_path, 60, tmp_path / "log")
    assert watched.returncode == 0
    assert 300e6 < watched.peak_bytes() < 500e6
    assert watched.peak_bytes(until=0) == 0


def test_a_failure_is_told_in_its_last_words(tmp_path: Path) -> None:
    program = "print('much'); raise SystemExit('no such thing')"
    assert run_watched([sys.executable, "-c", program], {}, tmp_path, 60, tmp_path / "log").error == "no such thing"


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    watched = run_watched([sys.executable, "-c", "import threading; threading.Event().wait()"], {}, tmp_path, 0.5, tmp_path / "log")
    assert (watched.returncode, watched.error) == (1, "ended after 0 s")
