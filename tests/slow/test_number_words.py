"""The example of numbers and words: an encoder-decoder that starts from nothing learns a mapping with one right answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_numbers_it_has_not_seen_are_spelt(tmp_path: Path) -> None:
    rows = tmp_path / "numbers.jsonl"
    subprocess.run([sys.executable, str(EXAMPLES / "number_words.py"), str(rows)], check=True)
    run = tunesmith.train(EXAMPLES / "number_words.yaml", [f"data.train={rows}"], run=tmp_path / "run", quiet=True)
    assert run.metrics["exact_match"] > 0.98
    assert run.predict("4 0 7 1")[0]["prediction"] == "four thousand seventy one"
    assert run.directory.read_json("proof.json")["proven"]
