"""What goes wrong with disks, files, signals and clocks costs no run and no checkpoint, and the resumed run ends with the same bits."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from error_examples import documented
from faulty_runs import acting, assert_same_end, crash, train
from tunesmith import pipeline
from tunesmith.engines import trainer
from tunesmith.runs import checkpoints
from tunesmith.runs.checkpoints import Checkpoints, is_whole

pytestmark = pytest.mark.usefixtures("without_proof")
slow = pytest.mark.slow


def whole_checkpoints(run: Path) -> list[str]:
    return [path.name for path in Checkpoints(run / "checkpoints").all() if is_whole(path)]


def crashed(tiny_bert: Path, run: Path, monkeypatch: pytest.MonkeyPatch, step: int, *overrides: str) -> Path:
    with acting(monkeypatch, "on_step_begin", step, crash), pytest.raises(RuntimeError, match="pulled the plug"):
        train(tiny_bert, run, *overrides)
    return run


def settled(run: Path, step: int) -> None:
    """Waits until a checkpoint is in place: it is sealed while the run goes on."""
    while not (run / f"checkpoints/checkpoint-{step}").exists():
        os.sched_yield()


# disks


def _small_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoints.os, "fsync", full)
    return patch.undo


def _no_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    usage = namedtuple("usage", "total used free")
    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 10_000))
    return patch.undo


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (_small_files, "run.not_written"),
        pytest.param(_full_disk, "run.not_written", marks=slow),
        pytest.param(_no_room, "run.no_room", marks=slow),
    ],
)
def test_a_disk_that_is_full_costs_the_steps_since_the_last_checkpoint(
    fault: Any, code: str, tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undo: list[Callable[[], None]] = []

    def act() -> None:
        settled(tmp_path / "run", 6)
        undo.append(fault(monkeypatch))

    try:
        with acting(monkeypatch, "on_step_begin", 8, act), pytest.raises(tunesmith.RunError) as caught:
            train(tiny_bert, tmp_path / "run")
    finally:
        undo.pop()()
    assert caught.value.code == code
    assert "tunesmith resume" in str(caught.value)
    if fault is _small_files:
        documented("run.not_written", "tunesmith train rows.jsonl model=MODEL --run RUN", str(caught.value), {tmp_path / "run": "RUN"})
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-6"]
    assert whole_checkpoints(tmp_path / "run") == ["checkpoint-3", "checkpoint-6"]
    assert_same_end(straight, pipeline.resume(tmp_path / "run", quiet=True).path)


def test_no_room_is_seen_before_the_first_step(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undo = _no_room(monkeypatch)
    try:
        with pytest.raises(tunesmith.RunError) as caught:
            train(tiny_bert, tmp_path / "run")
    finally:
        undo()
    assert caught.value.code == "run.no_room"
    documented("run.no_room", "tunesmith train rows.jsonl model=MODEL --run RUN", str(caught.value), {tmp_path / "run": "RUN"})
    assert not [event for event in tunesmith.open_run(tmp_path / "run").directory.events() if event["event"] == "log"]


@slow
def test_a_folder_that_cannot_be_written_any_more(tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "run/checkpoints/.partial"

    def block() -> None:
        settled(tmp_path / "run", 6)
        os.rename(partial, tmp_path / "away")
        partial.write_text("in the way")

    with acting(monkeypatch, "on_step_begin", 7, block), pytest.raises(tunesmith.RunError) as caught:
        train(tiny_bert, tmp_path / "run")
    assert caught.value.code == "run.not_written"
    assert whole_checkpoints(tmp_path / "run") == ["checkpoint-3", "checkpoint-6"]
    partial.unlink()
    assert_same_end(straight, pipeline.resume(tmp_path / "run", quiet=True).path)


@pytest.mark.parametrize("folder", ["/proc/tunesmith", "/dev/null/run"])
def test_a_place_where_nothing_can_be_made(folder: str, tiny_bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "good", "label": "a"}\n')
    with pytest.raises(tunesmith.InputError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}"], run=folder, quiet=True)
    assert caught.value.code == "usage.run_exists"


@pytest.mark.parametrize("most_memory", [0.8, 0.0])
def test_a_checkpoint_is_of_its_step_however_late_it_is_written(
    most_memory: float, tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is memory for a copy of the optimizer, or not."""
    two_steps_later, write = threading.Event(), Checkpoints.write
    monkeypatch.setattr(trainer, "MOST_MEMORY", most_memory)
    monkeypatch.setattr(Checkpoints, "write", lambda self, action: write(self, lambda: (two_steps_later.wait(), action())[1]))
    with acting(monkeypatch, "on_step_begin", 5, two_steps_later.set):
        crashed(tiny_bert, tmp_path / "run", monkeypatch, 5)
    assert whole_checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert_same_end(straight, pipeline.resume(tmp_path / "run", quiet=True).path)


# files


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_file_of_a_checkpoint_is_held_by_its_hash(straight: Path, tmp_path: Path) -> None:
    import shutil

    original = straight / "checkpoints/checkpoint-16"
    names = [path.name for path in original.iterdir()]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run_state.json"} < set(names)
    assert "training_args.bin" not in names
    for name in names:
        for damage in (_cut, _flip, Path.unlink):
            copy = Path(shutil.copytree(original, tmp_path / "copy"))
            assert is_whole(copy)
            damage(copy / name)
            assert not is_whole(copy), (name, damage)
            shutil.rmtree(copy)


def test_damaged_checkpoints_are_set_aside_and_named(
    tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = crashed(tiny_bert, tmp_path / "run", monkeypatch, 13, "train.save_total_limit=none")
    _flip(run / "checkpoints/checkpoint-12/optimizer.pt")
    (run / "checkpoints/checkpoint-9/model.safetensors").unlink()
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "half')
    resumed = pipeline.resume(run)
    told = capsys.readouterr().err
    assert "checkpoint-12 is incomplete or damaged: not used, and kept as damaged-checkpoint-12" in told
    assert "goes on from checkpoint-6" in told
    event = next(event for event in resumed.directory.events() if event["event"] == "resume")
    assert (event["checkpoint"], event["damaged"]) == ("checkpoint-6", ["checkpoint-12", "checkpoint-9"])
    assert {"damaged-checkpoint-9", "damaged-checkpoint-12", "checkpoint-12"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert_same_end(straight, run)


@slow
def test_a_best_checkpoint_that_is_lost_is_not_passed_over(
    tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = crashed(tiny_bert, tmp_path / "run", monkeypatch, 13)
    state = json.loads((run / "checkpoints/checkpoint-12/trainer_state.json").read_text())
    best = run / f"checkpoints/checkpoint-{state['best_global_step']}"
    _flip(best / "model.safetensors")
    if best.name == "checkpoint-12":  # then the one before it is the newest whole one, and has its best
        assert_same_end(straight, pipeline.resume(run, quiet=True).path)
        return
    with pytest.raises(tunesmith.RunError) as caught:
        pipeline.resume(run, quiet=True)
    assert caught.value.code == "run.best_lost"
    assert best.name in str(caught.value)
    documented("run.best_lost", "tunesmith resume RUN", str(caught.value), {run: "RUN"})
    resumed = pipeline.resume(run, accept_changes=True, quiet=True)
    assert int(resumed.result["best_checkpoint"].rpartition("-")[2]) > 12


@slow
def test_what_an_earlier_process_left_half_written_is_cleared(
    tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = crashed(tiny_bert, tmp_path / "run", monkeypatch, 7)
    for name in ("checkpoint-9", "removed-3"):
        (run / "checkpoints/.partial" / name).mkdir(parents=True)
        (run / "checkpoints/.partial" / name / "model.safetensors").write_bytes(b"half")
    assert_same_end(straight, pipeline.resume(run, quiet=True).path)
    assert not (run / "checkpoints/.partial").exists()


# signals and requests


@pytest.mark.parametrize(
    ("event", "step", "name"),
    [
        ("on_step_begin", 4, "SIGTERM"),
        pytest.param("on_evaluate", 6, "SIGINT", marks=slow),
        pytest.param("on_save", 6, "SIGTERM", marks=slow),
        pytest.param("on_epoch_end", 8, "SIGHUP", marks=slow),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint(
    event: str, step: int, name: str, tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # whoever started the tests may ignore it (nohup), and so would the run
    try:
        with acting(monkeypatch, event, step, lambda: signal.raise_signal(number)), pytest.raises(tunesmith.RunError) as caught:
            train(tiny_bert, tmp_path / "run")
    finally:
        signal.signal(number, before)
    assert caught.value.code == "run.interrupted"
    saved = whole_checkpoints(tmp_path / "run")[-1]
    assert f"{name} stopped the run after step {saved.rpartition('-')[2]}; {saved} was saved" in str(caught.value)
    assert f"tunesmith resume {tmp_path / 'run'}" in str(caught.value)
    if event == "on_step_begin":
        command = "tunesmith train rows.jsonl model=MODEL --run RUN     # and kill -TERM"
        documented("run.interrupted", command, str(caught.value), {tmp_path / "run": "RUN"})
    assert_same_end(straight, pipeline.resume(tmp_path / "run", quiet=True).path)


@slow
def test_evaluation_at_the_ends_of_epochs_is_not_moved_by_a_signal(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_epoch = ("train.eval_steps=epoch", "train.save_steps=epoch")
    expected = train(tiny_bert, tmp_path / "straight", *by_epoch)
    for step in (5, 7):  # within the epoch, and in its last step
        run = tmp_path / f"run-{step}"
        with acting(monkeypatch, "on_step_begin", step, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(tunesmith.RunError):
            train(tiny_bert, run, *by_epoch)
        assert whole_checkpoints(run) == [f"checkpoint-{step + 1}"]
        assert_same_end(expected, pipeline.resume(run, quiet=True).path)


def test_a_second_signal_stops_at_once_and_harms_nothing(
    tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with acting(monkeypatch, "on_step_begin", 7, twice), pytest.raises(tunesmith.RunError) as caught:
        train(tiny_bert, tmp_path / "run")
    assert "stopped the run at once" in str(caught.value)
    assert whole_checkpoints(tmp_path / "run") == ["checkpoint-3", "checkpoint-6"]
    assert_same_end(straight, pipeline.resume(tmp_path / "run", quiet=True).path)


@slow
@pytest.mark.parametrize("phase", ["tunesmith.pipeline.save_and_prove", "tunesmith.pipeline.evaluate_splits", "tunesmith.pipeline.prepare"])
def test_a_signal_outside_of_training_says_how_to_go_on(
    phase: str, tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(phase, stopped)
        with pytest.raises(tunesmith.RunError) as caught:
            train(tiny_bert, tmp_path / "run")
    assert caught.value.code == "run.interrupted"
    if phase.endswith("prepare"):
        assert "start again" in str(caught.value)
        assert_same_end(straight, train(tiny_bert, tmp_path / "run"))
    else:
        assert "tunesmith resume" in str(caught.value)
        assert_same_end(straight, pipeline.resume(tmp_path / "run", quiet=True).path)


@slow
def test_a_checkpoint_may_be_asked_for(tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> None:
        (tmp_path / "run/checkpoint-now").touch()

    with (
        acting(monkeypatch, "on_step_begin", 3, ask),
        acting(monkeypatch, "on_step_begin", 6, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
    ):
        train(tiny_bert, tmp_path / "run", "train.save_total_limit=none")
    assert [int(name.rpartition("-")[2]) for name in whole_checkpoints(tmp_path / "run")] == [3, 4, 6, 7, 9, 12, 15, 16]
    assert not (tmp_path / "run/checkpoint-now").exists()
    assert_same_end(straight, tmp_path / "run")


# clocks and other processes


@slow
def test_a_clock_that_goes_back(tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    assert_same_end(straight, train(tiny_bert, tmp_path / "run"))
    assert whole_checkpoints(tmp_path / "run")[-1] == "checkpoint-16"


HOLD = """
import sys
from pathlib import Path
from tunesmith.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_work_on_one_run(tiny_bert: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = crashed(tiny_bert, tmp_path / "run", monkeypatch, 7)
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(tunesmith.InputError) as caught:
            pipeline.resume(run, quiet=True)
    finally:
        owner.kill()
        owner.wait()
    assert caught.value.code == "usage.run_in_use"
    assert f'"pid": {owner.pid}, "host"' in caught.value.problems[0].found
    documented("usage.run_in_use", "tunesmith resume RUN", str(caught.value), {run: "RUN"})
    resumed = pipeline.resume(run, quiet=True)
    event = next(event for event in resumed.directory.events() if event["event"] == "resume")
    assert json.loads(event["dead_owner"])["pid"] == owner.pid
    assert_same_end(straight, run)


# changes


def test_a_longer_run_and_another_rate_really_are(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(tiny_bert, tmp_path / "longer", "train.epochs=3", "train.learning_rate=1e-4", "train.save_total_limit=none")
    run = train(tiny_bert, tmp_path / "run")
    with pytest.raises(tunesmith.InputError) as caught:
        pipeline.resume(run, ["train.learning_rate=1e-4"], quiet=True)
    assert caught.value.code == "usage.nothing_to_resume"
    resumed = pipeline.resume(run, ["train.epochs=3", "train.learning_rate=1e-4"], quiet=True)
    assert resumed.spec.train.epochs == 3
    rates = [
        {entry["step"]: entry["learning_rate"] for entry in _log(folder) if "learning_rate" in entry} for folder in (expected, resumed.path)
    ]
    assert max(rates[1]) > 20
    assert {step: rate for step, rate in rates[1].items() if step > 16} == {step: rate for step, rate in rates[0].items() if step > 16}
    event = [event for event in resumed.directory.events() if event["event"] == "resume"][-1]
    assert event["changed"] == {"train.epochs": [2, 3], "train.learning_rate": [0.001, 0.0001]}


def _log(run: Path) -> list[dict[str, Any]]:
    newest = Checkpoints(run / "checkpoints").all()[-1]
    return list(json.loads((newest / "trainer_state.json").read_text())["log_history"])


def test_changes_are_shown_and_refused(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = crashed(tiny_bert, tmp_path / "run", monkeypatch, 7)
    text = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(text.replace("max_grad_norm: 1.0", "max_grad_norm: 2.0"))
    environment = {"threads": 99, "accelerations": ["none"]}
    monkeypatch.setattr("tunesmith.pipeline._environment", lambda prepared: environment)
    with pytest.raises(tunesmith.InputError) as caught:
        pipeline.resume(run, quiet=True)
    found = {problem.where: problem.found for problem in caught.value.problems}
    assert found["train.max_grad_norm"] == "1.0 became 2.0"
    assert found["threads"].endswith("became 99")
    assert all(problem.code == "run.changed" and "--accept-changes" in problem.fix for problem in caught.value.problems)
    with pytest.raises(tunesmith.InputError) as caught:
        pipeline.resume(run, ["train.seed=1", "train.batch_size=8"], accept_changes=True, quiet=True)
    assert [problem.where for problem in caught.value.problems] == ["train.batch_size", "train.seed"]
    documented("run.changed", "tunesmith resume RUN train.seed=1 train.batch_size=8", str(caught.value), {})
    assert pipeline.resume(run, accept_changes=True, quiet=True).spec.train.max_grad_norm == 2.0
