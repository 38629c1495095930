"""Faults that strike a run at a random step, each beside what the run says of it; and the count of what they cost."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from faulty_runs import When
from kills import Subject, Tally, compare, ended_or_killed, ended_well, fork
from tunesmith.runs.checkpoints import Checkpoints
from tunesmith.runs.lock import LOCK

LAST_STEP = 16
TOKEN_BYTES, ROOM_BYTES = 4_000_000, 750_000_000
"""Of a model that takes more than it seems to. A whole step has 256 tokens, and half of one at most 128: neither is near the limit, which
other memory of the process moves by some dozen MB."""
NOBODY = 65534


def _die(run: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the process when a step has been taken, then on the disk; and what puts it right."""

    name: str
    strike: Callable[[Path], Any] = _die
    damage: Callable[[Path, random.Random], None] = lambda run, rng: None
    mend: Callable[[Path], Any] = lambda run: None
    """Before the run goes on."""
    says: str = ""
    """What the process says, or writes among the run's events."""
    processes: int = 1
    strikes_plain: bool = True
    """Whether it can befall Trainer alone: it has no lock, and takes its rows from no file."""
    is_resumed_by_another: bool = False
    """While the struck process stands still, another is to go on with its run."""
    dies_later: bool = False
    """The process lives on in another way than the straight run: it is killed two steps later, and compared with a run that is struck and not killed."""


def _newest(run: Path) -> Path:
    return Checkpoints(run / "checkpoints").all()[-1]


def _some_file(run: Path, rng: random.Random) -> Path:
    names = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    return _newest(run) / rng.choice(names)


def _flip(run: Path, rng: random.Random) -> None:
    path = _some_file(run, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(run: Path, rng: random.Random) -> None:
    path = _some_file(run, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _clock_back(run: Path) -> None:
    now = time.time()
    time.time = lambda: now - 86_400  # type: ignore[assignment]


def _read_only(run: Path) -> None:
    (run / "checkpoints/.partial").mkdir(exist_ok=True)
    for folder in (run / "checkpoints/.partial", run / "checkpoints"):
        folder.chmod(0o555)
    if os.geteuid() == 0:  # whom no mode holds
        for path in run.glob("*.*"):
            path.chmod(0o666)
        os.seteuid(NOBODY)


def _writable(run: Path) -> None:
    for folder in (run / "checkpoints", run / "checkpoints/.partial"):
        folder.chmod(0o755)


def _little_memory(is_training: bool) -> Callable[[Path], None]:
    """A limit that the kernel holds the process to, and a model that asks for more in training, or in evaluation."""

    def strike(run: Path) -> None:
        def ask(module: Any, unnamed: Any, given: Any, output: Any) -> None:
            if isinstance(module, PreTrainedModel) and module.training == is_training and "logits" in output:
                torch.empty(given["input_ids"].numel() * TOKEN_BYTES, dtype=torch.uint8)

        torch.nn.modules.module.register_module_forward_hook(ask, with_kwargs=True)
        used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert used is not None
        _limit(resource.RLIMIT_DATA, int(used[1]) * 1024 + ROOM_BYTES)

    return strike


def _one_of_two_dies(run: Path) -> None:
    if int(os.environ["RANK"]) == int(run.name.rpartition("-")[2]) % 2:
        _die(run)


def _torchrun_dies(run: Path) -> None:
    if os.environ["RANK"] == "0":
        os.kill(os.getppid(), signal.SIGKILL)


def _wait_for_its_owner(run: Path) -> None:
    """Those that torchrun watched live on for a while; the kernel drops the lock when they have ended."""
    with (run / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def faults(data: Path) -> tuple[Fault, ...]:
    """All of them, for runs on this file."""
    rows = data.read_text()
    full = resource.RLIMIT_FSIZE
    return (
        Fault("SIGTERM", lambda run: signal.raise_signal(signal.SIGTERM), says="run.interrupted"),
        Fault("Ctrl-C", lambda run: signal.raise_signal(signal.SIGINT), says="run.interrupted"),
        Fault("disk full while writing (RLIMIT_FSIZE)", lambda run: _limit(full, 20_000), says="run.not_written"),
        Fault("disk full while syncing (ENOSPC)", lambda run: setattr(os, "fsync", _full), says="run.not_written"),
        Fault("the folder of checkpoints made read-only", _read_only, mend=_writable, says="run.not_written"),
        Fault("newest checkpoint: a file cut", damage=_cut),
        Fault("newest checkpoint: a bit flipped", damage=_flip),
        Fault("newest checkpoint: a file gone", damage=lambda run, rng: _some_file(run, rng).unlink()),
        Fault("no memory for an evaluation (RLIMIT_DATA)", _little_memory(is_training=False), says="run.out_of_memory"),
        Fault(
            "no memory for a step (RLIMIT_DATA), then kill -9", _little_memory(is_training=True), says="too many for the memory",
            strikes_plain=False, dies_later=True,
        ),
        Fault("one of two processes killed", _one_of_two_dies, processes=2, strikes_plain=False),
        Fault("torchrun's own process killed", _torchrun_dies, mend=_wait_for_its_owner, processes=2, strikes_plain=False),
        Fault(
            "another process goes on with a run that is trained", lambda run: signal.raise_signal(signal.SIGSTOP), says="usage.run_in_use",
            strikes_plain=False, is_resumed_by_another=True,
        ),
        Fault(
            "the data file changed while training", lambda run: data.write_text(rows[:500]), mend=lambda run: data.write_text(rows),
            says=f'"data_changed": ["{data.name}"]', strikes_plain=False,
        ),
        Fault("the clock set back a day", _clock_back),
    )  # fmt: skip


def inject(of: Subject, fault: Fault, folder: Path, times: int, straight: Path) -> Tally:
    """Strikes so many runs at random steps, lets each go on, and compares its end."""
    rng, tally = random.Random(fault.name), Tally()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        run, step, log = folder / f"run-{number}", rng.randrange(7, LAST_STEP - 1), folder / f"log-{number}.txt"
        tally.runs += 1
        if fault.dies_later:
            straight = folder / f"straight-{number}"
            assert ended_well(lambda straight=straight, step=step: _struck(of, straight, {step: fault.strike}), log), log.read_text()
        code = _strike(of, fault, run, step, log)
        tally.kills += 1
        tally.moments[f"exit code {code}"] += 1
        said = log.read_text() + (run / "events.jsonl").read_text() if fault.says else ""
        if fault.says not in said:
            tally.unsaid.append(f"{run}: {fault.says} is not in {said[-300:]}")
        every = Checkpoints(run / "checkpoints").all()
        tally.checkpoints_lost += [str(path) for path in every if not of.is_whole(path)]
        fault.mend(run)
        if every:  # checkpoint 6 at least is in place: what is damaged is the newest, and another is left
            fault.damage(run, rng)
        if code != 0 and not ended_well(lambda run=run: of.go(run), log):
            tally.runs_lost.append(f"{run}: {log.read_text()[-300:]}")
            continue
        compare(of, straight, run, tally)
    return tally


def _strike(of: Subject, fault: Fault, run: Path, step: int, log: Path) -> int | None:
    """The exit code of a process that is struck."""
    strikes = {step: fault.strike, **({step + 2: _die} if fault.dies_later else {})}
    child = fork(lambda: _struck(of, run, strikes), log)
    if fault.is_resumed_by_another:
        _, status = os.waitpid(child, os.WUNTRACED)
        assert os.WIFSTOPPED(status), log.read_text()
        ended_well(lambda: of.go(run), log)
        os.kill(child, signal.SIGCONT)
    return ended_or_killed(child)


def _struck(of: Subject, run: Path, strikes: dict[int, Callable[[Path], None]]) -> None:
    """The run, with what happens to it at these steps."""
    original = transformers.Trainer.__init__

    def with_faults(self: Any, *arguments: Any, **named: Any) -> None:
        whens = [When("on_step_end", step, lambda strike=strike: strike(run)) for step, strike in strikes.items()]
        original(self, *arguments, callbacks=[*(named.pop("callbacks", None) or []), *whens], **named)

    transformers.Trainer.__init__ = with_faults
    of.go(run)
