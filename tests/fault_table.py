"""Injects every fault some times, into tunesmith and into transformers' Trainer alone, and prints what was lost: `make faults`.

python tests/fault_table.py FOLDER [INJECTIONS_OF_EACH [KILLS_OF_EACH_SCENARIO]]
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from faulty_runs import When
from kills import SCENARIOS, Subject, Tally, compare, ended, fork, kill_runs, run_straight, sources, subject
from tiny_models import texts_and_labels
from tunesmith.runs.checkpoints import Checkpoints

LAST_STEP = 16


@dataclass(frozen=True)
class Fault:
    """What goes wrong: in the process, when a step has been taken; and then on the disk."""

    name: str
    strike: Callable[[Path], None] = lambda run: os.kill(os.getpid(), signal.SIGKILL)
    damage: Callable[[Path, random.Random], None] = lambda run, rng: None
    ends: bool = True
    """Whether the process is meant to end by it."""


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


FAULTS = (
    Fault("SIGTERM", lambda run: signal.raise_signal(signal.SIGTERM)),
    Fault("Ctrl-C", lambda run: signal.raise_signal(signal.SIGINT)),
    Fault("disk full while writing (RLIMIT_FSIZE)", lambda run: _limit(resource.RLIMIT_FSIZE, 20_000)),
    Fault("disk full while syncing (ENOSPC)", lambda run: setattr(os, "fsync", _full)),
    Fault("newest checkpoint: a file cut", damage=_cut),
    Fault("newest checkpoint: a bit flipped", damage=_flip),
    Fault("newest checkpoint: a file gone", damage=lambda run, rng: _some_file(run, rng).unlink()),
    Fault("clock set back a day", _clock_back, ends=False),
)


def inject(of: Subject, fault: Fault, folder: Path, times: int, straight: Path) -> Tally:
    """Strikes so many runs at random steps, lets each go on, and compares its end."""
    rng, tally, log = random.Random(fault.name), Tally(), folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        run, step = folder / f"run-{number}", rng.randrange(7, LAST_STEP - 1)
        tally.runs += 1

        def struck(run: Path = run, step: int = step) -> None:
            original = transformers.Trainer.__init__

            def with_fault(self: Any, *arguments: Any, **named: Any) -> None:
                callbacks = [*(named.pop("callbacks", None) or []), When("on_step_end", step, lambda: fault.strike(run))]
                original(self, *arguments, callbacks=callbacks, **named)

            transformers.Trainer.__init__ = with_fault
            of.go(run)

        code = ended(fork(struck, log), time.monotonic() + 600)
        tally.kills += 1
        tally.moments[f"exit code {code}"] += 1
        # Checkpoint 6 at least is in place: what is damaged is the newest, and another is left.
        if Checkpoints(run / "checkpoints").all():
            fault.damage(run, rng)
        before = {path.name for path in Checkpoints(run / "checkpoints").all()}
        if code != 0 and ended(fork(lambda run=run: of.go(run), log), time.monotonic() + 600) != 0:
            tally.runs_lost.append(f"{run}: {log.read_text()[-300:]}")
            continue
        kept = {path.name.removeprefix("damaged-") for path in (run / "checkpoints").iterdir()}
        newest = max(before, key=lambda name: int(name.rpartition("-")[2]), default="")
        tally.checkpoints_lost += [newest] if code == 0 and newest and newest not in kept else []
        compare(of, straight, run, tally)
    return tally


# transformers' Trainer alone, as its documentation uses it


def plain(model: Path) -> Subject:
    """Trainer on the same rows, which goes on from the last checkpoint that it finds."""
    texts, labels = texts_and_labels(128)
    names = sorted(set(labels))

    def go(run: Path) -> None:
        if (run / "result.json").is_file():
            return
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        transformers.set_seed(0)
        rows = [{**tokenizer(text), "label": names.index(label)} for text, label in zip(texts, labels, strict=True)]
        rows = datasets.Dataset.from_list(rows)
        arguments = transformers.TrainingArguments(
            output_dir=str(run / "checkpoints"), num_train_epochs=2, per_device_train_batch_size=16, learning_rate=1e-3, save_steps=3,
            save_strategy="steps", eval_strategy="steps", eval_steps=3, logging_steps=2, save_total_limit=2, load_best_model_at_end=True,
            seed=0, use_cpu=True, disable_tqdm=True, report_to="none",
        )  # fmt: skip
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names))
        engine = transformers.Trainer(
            model=classifier, args=arguments, train_dataset=rows, eval_dataset=rows.select(range(32)), processing_class=tokenizer
        )
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        engine.train(resume_from_checkpoint=get_last_checkpoint(str(run / "checkpoints")))
        engine.save_model(str(run / "model"))
        (run / "result.json").write_text(json.dumps(engine.state.global_step))

    def wrong(straight: Path, run: Path) -> list[str]:
        tensors = [load_file(folder / "model/model.safetensors") for folder in (straight, run)]
        return [] if all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]) else ["model.safetensors"]

    def complete(checkpoint: Path) -> bool:
        return (checkpoint / "trainer_state.json").is_file() and _loads(checkpoint)

    def saving(run: Path) -> bool:
        return any(not (checkpoint / "trainer_state.json").is_file() for checkpoint in (run / "checkpoints").glob("checkpoint-*"))

    return Subject("plain Trainer", go, wrong, complete, saving)


def _loads(checkpoint: Path) -> bool:
    try:
        return bool(load_file(checkpoint / "model.safetensors")) and bool(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    except Exception:  # whatever it says: it is not whole
        return False


def _row(name: str, tally: Tally) -> str:
    return f"| {name} | {tally.kills} | {len(tally.runs_lost)} | {len(tally.checkpoints_lost)} | {len({what.partition(': model')[0] for what in tally.bits_that_differ})} |"


HEAD = "| fault | injected | runs that cannot go on | checkpoints lost | runs that end with other bits |\n|---|---|---|---|---|"


def main(folder: Path, times: int, num_kills: int) -> int:
    """Prints the table; returns the number of harms that tunesmith did."""
    transformers.utils.logging.set_verbosity_error()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    places, harms = sources(folder / "sources"), 0
    print(f"tunesmith\n\n{HEAD}", flush=True)
    ours = subject("text_classification full", places)
    run_straight(ours, folder / "ours")
    for fault in FAULTS if times else ():
        tally = inject(ours, fault, folder / "ours" / fault.name.replace(" ", "-"), times, folder / "ours/straight")
        print(_row(fault.name, tally), flush=True)
        print("\n".join(tally.harm), file=sys.stderr)
        harms += len(tally.harm)
    for name in SCENARIOS if num_kills else ():
        tally = kill_runs(subject(name, places), folder / name.replace(" ", "-"), num_kills, seed=0)
        print(_row(f"kill -9 at random moments: {name}", tally), flush=True)
        print("\n".join(tally.harm), file=sys.stderr)
        harms += len(tally.harm)
    print(f"\ntransformers {transformers.__version__} alone, which goes on from the last checkpoint it finds\n\n{HEAD}", flush=True)
    theirs = plain(places["rows"][1])
    run_straight(theirs, folder / "theirs")
    for fault in FAULTS if times else ():
        tally = inject(theirs, fault, folder / "theirs" / fault.name.replace(" ", "-"), times, folder / "theirs/straight")
        print(_row(fault.name, tally), flush=True)
    if num_kills:
        print(_row("kill -9 at random moments", kill_runs(theirs, folder / "theirs-killed", num_kills, seed=0)), flush=True)
    return harms


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    sys.exit(min(main(Path(sys.argv[1]), *(numbers + [3, 11][len(numbers) :])), 1))
