"""Injects every fault some times, into tunesmith and into transformers' Trainer alone, and prints what was lost: `make faults`.

python tests/fault_table.py FOLDER [INJECTIONS_OF_EACH [KILLS_OF_EACH_SCENARIO]]
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import transformers

from injections import faults, inject
from kills import SCENARIOS, Tally, kill_runs, run_straight, sources, subject
from plain_runs import plain

HEAD = "| fault | injected | runs that cannot go on | checkpoints lost | runs that end with other bits |\n|---|---|---|---|---|"
INJECTIONS, KILLS = 3, 8


def _show(name: str, tally: Tally) -> int:
    """Prints a row; returns the number of harms."""
    others = {what.rpartition(": ")[0] for what in tally.bits_that_differ}
    print(f"| {name} | {tally.kills} | {len(tally.runs_lost)} | {len(tally.checkpoints_lost)} | {len(others)} |", flush=True)
    print(f"{name}: {dict(tally.moments)}", *tally.harm, sep="\n", file=sys.stderr, flush=True)
    return len(tally.harm)


def main(folder: Path, times: int = INJECTIONS, num_kills: int = KILLS) -> int:
    """Prints the table; returns the number of harms that tunesmith did."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it, and so would what is struck
    transformers.utils.logging.set_verbosity_error()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    places, harms = sources(folder / "sources"), 0
    every = faults(places["rows"][0]) if times else ()
    print(f"tunesmith\n\n{HEAD}", flush=True)
    ours = {1: subject("text_classification full", places), 2: subject("text_classification full, two processes", places)}
    for count in {fault.processes for fault in every}:
        run_straight(ours[count], folder / f"ours-{count}")
    for fault in every:
        place = folder / f"ours-{fault.processes}"
        tally = inject(ours[fault.processes], fault, place / fault.name.replace(" ", "-"), times, place / "straight")
        harms += _show(fault.name, tally)
    for name in SCENARIOS if num_kills else ():
        tally = kill_runs(subject(name, places), folder / name.replace(" ", "-"), num_kills, seed=0)
        harms += _show(f"kill -9 at random moments: {name}", tally)
    print(f"\ntransformers {transformers.__version__} alone, which goes on from the last checkpoint it finds\n\n{HEAD}", flush=True)
    theirs = plain(places["rows"][1])
    run_straight(theirs, folder / "theirs")
    for fault in every:
        if fault.strikes_plain:
            place = folder / "theirs" / fault.name.replace(" ", "-")
            _show(fault.name, inject(theirs, replace(fault, says=""), place, times, folder / "theirs/straight"))
    if num_kills:
        _show("kill -9 at random moments", kill_runs(theirs, folder / "theirs-killed", num_kills, seed=0))
    return harms


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), *map(int, sys.argv[2:])), 1))
