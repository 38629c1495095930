"""Two processes equal one: the same losses and weights, and a run of two that was stopped ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tiny_models import save_tiny, write_jsonl
from tunesmith.errors import InputError

pytestmark = pytest.mark.slow  # each process imports all there is
SOURCE = Path(tunesmith.__file__).parents[1]
ROWS = 41
"""Five steps of eight rows and one of a single row, which one of two processes has no part in."""
SETTINGS = [
    "data.validation=none", "train.epochs=2", "train.batch_size=8", "train.learning_rate=1e-3", "train.logging_steps=1",
    "train.precision=fp32", "train.save_steps=4", "train.save_total_limit=none",
]  # fmt: skip
STOP_AFTER = 5
SCRIPT = """
import os, select, signal, sys
import transformers
import tunesmith
from tunesmith.verbs import prove
from tunesmith.engines import callbacks
from tunesmith.runs.checkpoints import Checkpoints

prove.prove_model = lambda *arguments: {"proven": True, "problems": []}
data, run, how, *settings = sys.argv[1:]
record = callbacks.SaveCheckpoints.on_step_end
def stop(self, args, state, control, **kwargs):
    if how == "stop" and state.global_step == STOP_AFTER and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    record(self, args, state, control, **kwargs)
callbacks.SaveCheckpoints.on_step_end = stop

# At the end of training each lists the folder that checkpoints are written in; the second does it when the first has removed it, if the first does not wait.
removed = os.open(sys.path[0] + "/removed", os.O_RDWR)
close, look = Checkpoints.close, transformers.trainer.sort_checkpoints
def close_and_tell(self):
    close(self)
    os.write(removed, b"x")
def look_late(**arguments):
    if os.environ["RANK"] == "1":
        select.select([removed], [], [], 1)
        os.listdir(arguments["output_dir"])
    return look(**arguments)
Checkpoints.close, transformers.trainer.sort_checkpoints = close_and_tell, look_late

if how == "resume":
    tunesmith.resume(run, quiet=True)
else:
    tunesmith.train(data, settings, run=run, quiet=True)
""".replace("STOP_AFTER", str(STOP_AFTER))


def _run_two(folder: Path, run: str, how: str, *settings: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT)
    (folder / "removed").unlink(missing_ok=True)
    os.mkfifo(folder / "removed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(folder / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(folder / "rows.jsonl"), str(folder / run), how, *settings]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "log" and "loss" in event]


def _without_dropout(model: Path) -> Path:
    """Elements are dropped by each process for itself, so only without can two take the steps of one."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run of one process, of two, and of two that were stopped in the middle and resumed; and what the stopped one said."""
    folder = tmp_path_factory.mktemp("processes")
    write_jsonl(folder / "rows.jsonl", num_rows=ROWS)
    settings = [f"model={_without_dropout(save_tiny('bert', folder / 'bert'))}", *SETTINGS]
    tunesmith.train(str(folder / "rows.jsonl"), settings, run=folder / "one", quiet=True)
    done = _run_two(folder, "two", "train", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    stopped = _run_two(folder, "resumed", "stop", *settings)
    done = _run_two(folder, "resumed", "resume")
    assert done.returncode == 0, done.stderr[:20_000]
    return folder, stopped


def test_two_processes_take_the_steps_of_one(runs: Any) -> None:
    folder, _ = runs
    one, two = _losses(folder / "one"), _losses(folder / "two")
    assert len(one) == len(two) == 12
    assert two == pytest.approx(one, rel=1e-5)
    expected, found = (load_file(folder / run / "model" / "model.safetensors") for run in ("one", "two"))
    for name, tensor in expected.items():
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding, which AdamW makes steps of
            assert torch.allclose(found[name], tensor, atol=1e-5), name


def test_a_signal_to_one_process_stops_both_after_the_same_step(runs: Any) -> None:
    folder, stopped = runs
    assert stopped.returncode != 0
    assert "run.interrupted" in stopped.stderr
    assert f"checkpoint-{STOP_AFTER} was saved" in stopped.stderr
    assert (folder / "resumed" / "checkpoints" / f"checkpoint-{STOP_AFTER}" / "rng_state_1.pth").is_file()


def test_another_number_of_processes_is_another_environment(runs: Any) -> None:
    folder, _ = runs
    shutil.copytree(folder / "resumed", folder / "alone")
    (folder / "alone" / "result.json").unlink()
    with pytest.raises(InputError) as caught:
        tunesmith.resume(folder / "alone", quiet=True)
    problem = caught.value.problems[0]
    assert (problem.code, problem.where, problem.found) == ("run.changed", "processes", "2 became 1")


def test_two_resumed_processes_end_with_the_same_bits(runs: Any) -> None:
    folder, _ = runs
    assert _losses(folder / "resumed") == _losses(folder / "two")
    expected, found = (load_file(folder / run / "model" / "model.safetensors") for run in ("two", "resumed"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
