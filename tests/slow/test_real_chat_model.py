"""SmolLM2 as a user trains it: killed and resumed to the same bits, merged and proven, and it writes what it was taught."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tunesmith.models.catalog import CATALOG, is_installed
from tunesmith.pipeline import resume

pytestmark = pytest.mark.slow

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown", "grey")
SETTINGS = [
    "data.validation=10%", "train.precision=fp32", "train.batch_size=8", "train.max_steps=4", "train.save_steps=2", "train.eval_steps=none",
    "train.load_best_model_at_end=false", "train.save_total_limit=none", "method.rank=8", "task.system=Be brief.",
]  # fmt: skip


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    assert is_installed(CATALOG["smollm2"]), "make setup installs it"
    rows = [
        {"messages": [{"role": "user", "content": f"Item {number}, which colour?"}, {"role": "assistant", "content": f"It is {colour}."}]}
        for number in range(1, 6)
        for colour in [COLOURS[number]]
        for number in range(number * 10, number * 10 + 10)
    ]
    path = tmp_path / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def adapters(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_killed_and_resumed_gives_the_same_adapters(method: str, conversations: Path, tmp_path: Path) -> None:
    settings = [f"method={method}", *SETTINGS]
    straight = tunesmith.train(str(conversations), settings, run=tmp_path / "straight", quiet=True)
    command = [sys.executable, "-m", "tunesmith.cli", "train", str(conversations), *settings, "--run", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    checkpoint = tmp_path / "killed" / "checkpoints" / "checkpoint-2" / "manifest.json"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    resumed = resume(tmp_path / "killed", quiet=True)
    expected, found = adapters(straight.path), adapters(resumed.path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert straight.metrics == resumed.metrics
    assert json.loads((resumed.path / "proof.json").read_text())["largest_logit_difference"] == 0


def test_it_learns_to_answer_and_the_merge_is_proven(conversations: Path, tmp_path: Path) -> None:
    settings = [
        "method=lora", *SETTINGS[:-1], "task.system=Be brief.", "task.generation.max_new_tokens=12", "task.metrics=[exact_match]", "train.max_steps=24",
        "train.save_steps=none", "train.learning_rate=1e-3",
    ]  # fmt: skip
    run = tunesmith.train(str(conversations), settings, run=tmp_path / "run", quiet=True)
    result = run.evaluate(compare=True, quiet=True)
    assert result["base"]["metrics"]["exact_match"] == 0
    assert result["metrics"]["ended"] == 1
    assert result["metrics"]["perplexity"] < 2 < result["base"]["metrics"]["perplexity"]
    answer = run.predict("Item 12, which colour?")[0]
    assert answer["finished"]
    assert answer["answer"].startswith("It is ")
    proof = run.merge(tmp_path / "merged", quiet=True)
    assert proof["proven"]
    assert proof["top_1_agreement"] == 1
