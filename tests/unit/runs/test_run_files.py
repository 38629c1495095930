from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tunesmith.runs.progress as progress_module
from tunesmith.errors import InputError, RunError
from tunesmith.runs.checkpoints import MANIFEST, Checkpoints, is_whole, newest_checkpoint, seal_checkpoint, step_of
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.environment import PACKAGES, bf16_speedup, describe_environment, peak_memory_bytes, total_memory_bytes
from tunesmith.runs.progress import Progress, format_seconds
from tunesmith.strict import load_spec

# the directory


def test_a_new_directory_has_its_folders(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "deep" / "run", "text_classification")
    assert run.path.is_absolute()
    assert run.checkpoints.is_dir()
    assert run.model == run.path / "model"
    assert not run.is_complete


def test_a_directory_without_a_name_is_named_by_date_and_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {RunDirectory.create(None, "text_classification").path for _ in range(3)}
    assert len(runs) == 3
    assert all(path.parent == tmp_path / "runs" and "-text_classification" in path.name for path in runs)


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, "t").path == tmp_path


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("run", "file", "file/below"):
        with pytest.raises(InputError) as caught:
            RunDirectory.create(tmp_path / name, "t")
        assert caught.value.code == "usage.run_exists"
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_run_is_not_opened(make: bool, tmp_path: Path) -> None:
    if make:
        (tmp_path / "run").mkdir()
    with pytest.raises(InputError) as caught:
        RunDirectory.open(tmp_path / "run")
    assert caught.value.code == "usage.no_such_run"
    assert caught.value.problems[0].found == ("no resolved.yaml in it" if make else "no such folder")


def test_a_spec_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spec = load_spec(
        {
            "task": {
                "name": "text_classification",
                "labels": ["no", "1", "2e5", "-.5", "1.", "+3", "~", "0x1f", "12:30", "=", "<<", "ünïcode: #"],
            },
            "model": "minilm",
            "data": {"train": str(tmp_path / "a.csv"), "columns": {"text": "yes", "label": "on"}},
            "method": {"name": "lora", "rank": 3},
            "train": {"learning_rate": 2e-5, "adam_epsilon": 1e-8, "extra": {"run_name": "2e5"}},
        }
    )
    run = RunDirectory.create(tmp_path / "run", "t")
    run.write_spec("resolved.yaml", spec.model_dump())
    assert RunDirectory.open(tmp_path / "run").spec() == spec


def test_json_files_are_whole_or_not_there(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "t")
    assert run.read_json("result.json") is None
    run.write_json("result.json", {"path": tmp_path, "text": "é"})
    assert run.read_json("result.json") == {"path": str(tmp_path), "text": "é"}
    assert run.is_complete
    with pytest.raises(ValueError, match="Circular"):
        run.write_json("result.json", _circle())
    assert run.read_json("result.json")["text"] == "é"
    assert not list(run.path.glob(".*.partial"))


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def test_events_are_lines_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "t")
    assert run.events() == []
    run.add_event("start", steps=3)
    run.add_event("log", loss=0.5, path=tmp_path)
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"event": "half')
    assert [(event["event"], event.get("steps")) for event in run.events()] == [("start", 3), ("log", None)]
    assert run.events()[1]["path"] == str(tmp_path)


# checkpoints


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes([step]) * 100)
    (path / "inner" / "state.json").write_text("{}")
    seal_checkpoint(path)
    return path


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    assert is_whole(path)
    assert set(json.loads((path / MANIFEST).read_text())) == {"model.safetensors", "inner/state.json"}
    seal_checkpoint(path)
    assert is_whole(path)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "unsealed", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_not(damage: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    weights = path / "model.safetensors"
    if damage == "changed":
        weights.write_bytes(b"\x00" + weights.read_bytes()[1:])
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "gone":
        (path / "inner" / "state.json").unlink()
    else:
        (path / MANIFEST).unlink()
        if damage != "no manifest":
            (path / MANIFEST).write_text("{" if damage == "unsealed" else "{}")
    assert not is_whole(path)


def test_the_newest_whole_checkpoint_is_chosen_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-100" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-200").mkdir()
    newest, damaged = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-10"
    assert [path.name for path in damaged] == ["checkpoint-200", "checkpoint-100"]


def _publish(checkpoints: Checkpoints, step: int, best: int) -> None:
    folder = checkpoints.partial / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    state = {"best_global_step": best, "best_model_checkpoint": f"checkpoint-{best}"}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    checkpoints.publish(step, [best])
    checkpoints.wait()


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (None, [[3], [3, 6], [3, 6, 9], [3, 6, 9, 12]]),
        (1, [[3], [3, 6], [9], [9, 12]]),
        # When 9 becomes the best, 6 would be of no use without 3, so 3 is what stays beside it.
        (2, [[3], [3, 6], [3, 9], [9, 12]]),
        (3, [[3], [3, 6], [3, 6, 9], [3, 9, 12]]),
    ],
)
def test_the_limit_keeps_the_newest_the_best_and_what_can_take_their_place(
    limit: int | None, left: list[list[int]], tmp_path: Path
) -> None:
    published: list[Path] = []
    checkpoints = Checkpoints(tmp_path, limit, published.append)
    for (step, best), expected in zip([(3, 3), (6, 3), (9, 9), (12, 9)], left, strict=True):
        _publish(checkpoints, step, best)
        assert [step_of(path) for path in checkpoints.all()] == expected
        assert newest_checkpoint(tmp_path) == (checkpoints.path(step), [])
    checkpoints.close()
    assert [step_of(path) for path in published] == [3, 6, 9, 12]
    assert not checkpoints.partial.exists()
    if limit == 2:
        (tmp_path / "checkpoint-9" / "trainer_state.json").unlink()
        with pytest.raises(RunError) as caught:
            newest_checkpoint(tmp_path)
        assert caught.value.code == "run.best_lost"
        assert newest_checkpoint(tmp_path, needs_best=False)[0] == tmp_path / "checkpoint-12"


def test_a_checkpoint_that_is_written_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    for best in (3, 2):
        _publish(checkpoints, 3, best)
    checkpoints.close()
    assert json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["best_global_step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])


# the environment


def test_the_environment_is_plain_values() -> None:
    found = describe_environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) == set(PACKAGES)
    assert found["versions"]["torch"][0].isdigit()
    assert found["python"] == sys.version.split()[0]
    assert found["memory_gb"] > 0


def test_memory_is_in_bytes() -> None:
    import torch

    before = peak_memory_bytes()
    assert 10_000_000 < before < total_memory_bytes()
    held = torch.ones(int(peak_memory_bytes() / 4) + 20_000_000)  # four bytes each: more than there ever was
    assert peak_memory_bytes() >= before + 40_000_000
    assert held.sum() > 0


def test_the_measurement_of_bf16_leaves_the_random_state_alone() -> None:
    import torch

    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    assert bf16_speedup() > 0
    assert torch.equal(torch.randn(3), expected)


def test_bf16_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = bf16_speedup()
    monkeypatch.setattr("tunesmith.runs.environment._measure_bf16_speedup", lambda: first + 1)
    assert bf16_speedup() == first


# progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(progress_module, "time", own)
    return own


def test_without_a_terminal_a_line_comes_now_and_then_with_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().activity("training", 100) as activity:
        activity.advance(5, "loss 0.5")
        clock.now += 20
        activity.advance(5)
        activity.advance(5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training 10/100  loss 0.5  3 min 0 s left\n"


def test_what_was_done_before_does_not_speed_up_the_estimate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().activity("training", 100, done=50) as activity:
        clock.now += 20
        activity.advance(10)
    assert capsys.readouterr().err == "training 60/100    1 min 20 s left\n"


def test_quiet_says_nothing_but_counts(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.say("hello")
    with progress.activity("training", 3) as activity:
        activity.advance()
        assert activity.done == 1
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().say("a [bold] word")
    assert capsys.readouterr() == ("", "a [bold] word\n")


def test_on_a_terminal_activities_nest_and_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress()
    with progress.activity("training", 2) as outer, progress.activity("evaluating", 3) as inner:
        outer.advance(1, "loss 0.5")
        inner.advance(3)
        progress.say("between [brackets]")
    assert progress._live is None
    assert (outer.done, inner.done) == (1, 3)
    assert "between [brackets]" in capsys.readouterr().err
