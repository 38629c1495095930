"""Kills runs at random moments, again and again, and compares what they end with.

The process that imports torch forks a child for each attempt, so that a life costs a fraction of a second.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import tunesmith
from faulty_runs import SETTINGS, differing
from tiny_conversations import save_chat_model, write_conversations, write_prose
from tiny_models import save_tiny, write_jsonl
from tiny_pairs import write_pairs
from tiny_questions import questions, write_flat
from tiny_tags import write_conll
from tiny_translations import save_tiny_encoder_decoder
from tiny_translations import write_pairs as write_translations
from tunesmith import pipeline
from tunesmith.runs.checkpoints import Checkpoints, is_whole, step_of
from tunesmith.verbs import prove
from two_processes import LOOK_SECONDS, forked, kill_some, launched


@dataclass(frozen=True)
class Scenario:
    """What is trained, and how."""

    source: str
    """Data and model, of `sources`."""
    overrides: Sequence[str] = ()
    processes: int = 1
    settings: Sequence[str] = tuple(SETTINGS)


WITHOUT_STEPS = [setting for setting in SETTINGS if not setting.startswith("train.") or "precision" in setting]
LORA = ["method=lora", "method.rank=4"]
CHAT = ["task=chat", "train.epochs=3"]
ADAPTERS = ["method.rank=4", "method.dropout=0.1"]
BLOCKS = ["task.max_length=24", "train.max_steps=15"]
ANSWERS = ["task.max_length=32", "task.stride=8", "train.max_steps=15"]
TRANSLATIONS = ["task=seq2seq", "task.metrics=[exact_match]", "task.num_generated_in_training=4"]
SCENARIOS = {
    "text_classification full": Scenario("rows"),
    "text_classification full, by epoch": Scenario("rows", ["train.eval_steps=epoch", "train.save_steps=epoch"]),
    "text_classification full, two processes": Scenario("rows", processes=2),
    "text_classification lora": Scenario("rows", LORA),
    "text_classification freeze": Scenario("rows", ["method=freeze", "method.num_blocks=1"]),
    "text_classification linear_probe": Scenario("rows", ["method=linear_probe"], settings=WITHOUT_STEPS),
    "token_classification full": Scenario("tags"),
    "token_classification lora": Scenario("tags", LORA),
    "question_answering full": Scenario("questions", ANSWERS),
    "embedding full": Scenario("pairs"),
    "seq2seq full": Scenario("translations", TRANSLATIONS),
    "chat lora": Scenario("chat", [*CHAT, "method=lora", *ADAPTERS]),
    "chat qlora": Scenario("chat", [*CHAT, "method=qlora", *ADAPTERS]),
    "chat full, packed": Scenario("chat", [*CHAT, "method=full", "train.pack=true"]),
    "causal_lm full": Scenario("prose", ["task=causal_lm", "method=full", *BLOCKS]),
    "masked_lm full": Scenario("masked", ["task=masked_lm", "method=full", *BLOCKS]),
}
"""By task and method."""

MOST_SECONDS = 60.0
"""A run of these models takes a few; one that takes longer hangs."""


@dataclass
class Tally:
    """What came of the kills of one scenario."""

    kills: int = 0
    runs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    runs_lost: list[str] = field(default_factory=list)
    checkpoints_lost: list[str] = field(default_factory=list)
    bits_that_differ: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    """What the run ought to have said of the fault."""

    @property
    def harm(self) -> list[str]:
        """Everything that ought not to be."""
        return [*self.runs_lost, *self.checkpoints_lost, *self.bits_that_differ, *self.unsaid]


def sources(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{name: (data, model)} for the scenarios."""
    folder.mkdir(parents=True, exist_ok=True)
    bert, masked, chat = save_tiny("bert", folder / "bert"), folder / "masked", save_chat_model(folder / "chat", attention_dropout=0.1)
    save_tiny("bert", masked, "AutoModelForMaskedLM")
    translator = save_tiny_encoder_decoder("bart", folder / "bart", dropout=0.1)
    prose = write_prose(folder / "prose.txt", 2200)
    return {
        "rows": (write_jsonl(folder / "rows.jsonl", 150), bert),
        "tags": (write_conll(folder / "rows.conll", 150), bert),
        "questions": (write_flat(folder / "questions.jsonl", questions(150)), bert),
        "pairs": (write_pairs(folder / "pairs.jsonl", "pairs", 150), bert),
        "translations": (write_translations(folder / "translations.jsonl", 150), translator),
        "chat": (write_conversations(folder / "chat.jsonl", 50), chat),
        "prose": (prose, chat),
        "masked": (prose, masked),
    }


def _and_subclasses(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(below for own in kind.__subclasses__() for below in _and_subclasses(own))]


def fork(action: Callable[[], Any], log: Path) -> int:
    """Runs it in a child, whose exit code is 0 when it ends well."""
    for progress in _and_subclasses(
        tqdm
    ):  # their own lock is shared by processes: one that is killed while it holds it blocks all that follow
        progress.set_lock(threading.RLock())

    def logged() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        # The fresh process of the proof costs seconds, and reads files only.
        prove.prove_model = lambda *arguments: {"proven": True, "problems": []}  # type: ignore[assignment]
        action()

    return forked(logged)


def ended(child: int, until: float) -> int | None:
    """The exit code of a child, or None when it still lives at that time."""
    descriptor = os.pidfd_open(child)
    try:
        select.select([descriptor], [], [], max(until - time.monotonic(), 0))
    finally:
        os.close(descriptor)
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def ended_or_killed(child: int) -> int | None:
    """The exit code of a child; None when it hung, and was killed."""
    code = ended(child, time.monotonic() + MOST_SECONDS)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return code


def ended_well(action: Callable[[], Any], log: Path) -> bool:
    """Whether a child ends well. One that hangs is killed like any other, and the run gone on with: a fork of a process with threads may hold
    a lock that nobody frees. Three in a row are no accident."""
    for _ in range(3):
        code = ended_or_killed(fork(action, log))
        if code is not None:
            return code == 0
    return False


def go(data: Path, settings: Sequence[str], run: Path) -> None:
    """Starts the run, or goes on with it."""
    if (run / "result.json").is_file():
        return
    if (run / "resolved.yaml").is_file():
        pipeline.resume(run, quiet=True)
    else:
        tunesmith.train(str(data), list(settings), run=run, quiet=True)


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


@dataclass(frozen=True)
class Subject:
    """What is killed and compared."""

    name: str
    go: Callable[[Path], None]
    """(run) starts it, or goes on with it."""
    differing: Callable[[Path, Path], list[str]] = differing
    is_whole: Callable[[Path], bool] = is_whole
    is_saving: Callable[[Path], bool] = lambda run: _holds_something(run / "checkpoints/.partial")
    kill: Callable[[int, random.Random], None] = lambda child, rng: os.kill(child, signal.SIGKILL)
    """The child ends by it, at once or when it sees what it lost."""


def subject(name: str, places: dict[str, tuple[Path, Path]]) -> Subject:
    """The runs of a scenario."""
    scenario = SCENARIOS[name]
    data, model = places[scenario.source]
    settings = [*scenario.settings, f"model={model}", *scenario.overrides]
    if scenario.processes == 1:
        return Subject(name, lambda run: go(data, settings, run))
    return Subject(name, lambda run: launched(lambda: go(data, settings, run)), kill=kill_some)


def run_straight(of: Subject, folder: Path) -> float:
    """A run in which nothing goes wrong, in folder/straight; returns its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    started, log = time.monotonic(), folder / "log.txt"
    assert ended_well(lambda: of.go(folder / "straight"), log), log.read_text()
    return time.monotonic() - started


def kill_runs(of: Subject, folder: Path, num_kills: int, seed: int, kills_a_run: int = 6) -> Tally:
    """Kills runs so many times at moments drawn from the seed, each run up to `kills_a_run` times before it may end."""
    rng, tally = random.Random(f"{seed} {of.name}"), Tally()
    length, log = run_straight(of, folder), folder / "log.txt"
    while tally.kills < num_kills:
        run = folder / f"run-{tally.runs}"
        tally.runs += 1
        _live_and_die(of, run, log, tally, rng, length, min(kills_a_run, num_kills - tally.kills))
        compare(of, folder / "straight", run, tally)
    return tally


def compare(of: Subject, straight: Path, run: Path, tally: Tally) -> None:
    """Notes what of a run is not as it ought to be; removes one that is."""
    wrong = of.differing(straight, run) if (run / "result.json").is_file() else []
    tally.bits_that_differ += [f"{of.name}: {run.name}: {what}" for what in wrong]
    if not wrong:
        shutil.rmtree(run, ignore_errors=True)


def _live_and_die(of: Subject, run: Path, log: Path, tally: Tally, rng: random.Random, length: float, kills: int) -> None:
    """One run: killed so many times (or fewer, when it ends before), then left to end."""
    newest = -1

    def action() -> None:
        of.go(run)

    for _ in range(kills):
        child, started = fork(action, log), time.monotonic()
        code = (
            ended(child, started + rng.uniform(0, length))
            if rng.random() < 0.5
            else _while_saving(of, child, run, rng, started + 2 * length)
        )
        if code is None:
            of.kill(child, rng)
            if ended_or_killed(child) is None:
                tally.runs_lost.append(f"{run}: hangs after a kill")
                return
            tally.kills += 1
            tally.moments[_moment(of, run)] += 1
        elif code != 0:
            tally.runs_lost.append(f"{run}: {log.read_text()[-2000:]}")
            return
        every = Checkpoints(run / "checkpoints").all()
        tally.checkpoints_lost += [str(path) for path in every if not of.is_whole(path)]
        if every and step_of(every[-1]) < newest:
            tally.checkpoints_lost.append(f"{run}: {newest} is gone")
        newest = step_of(every[-1]) if every else newest
        if code == 0:
            return
    if not ended_well(action, log):
        tally.runs_lost.append(f"{run}: {log.read_text()[-2000:]}")


def _while_saving(of: Subject, child: int, run: Path, rng: random.Random, until: float) -> int | None:
    """Waits until a checkpoint is being written, and a moment longer."""
    for _ in range(rng.randint(1, 3)):
        while not of.is_saving(run):
            code = ended(child, time.monotonic() + LOOK_SECONDS)
            if code is not None or time.monotonic() > until:
                return code
        code = ended(child, time.monotonic() + rng.uniform(0, 0.03))
        if code is not None:
            return code
    return None


def _moment(of: Subject, run: Path) -> str:
    if of.is_saving(run):
        return "saving"
    if not (run / "resolved.yaml").is_file():
        return "preparing"
    if (run / "result.json").is_file():
        return "ended"
    if (run / "model").is_dir():
        return "finishing"
    return "between" if Checkpoints(run / "checkpoints").all() else "before the first checkpoint"
