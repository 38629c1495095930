"""Measurements beside peers: `compare`, `overhead` and `growth`; `python -m bench COMMAND --help` says more."""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import datetime
from pathlib import Path

from bench.works import WORKS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    default_out = Path(f".bench/results/{datetime.now():%Y%m%d-%H%M%S}")
    compare = commands.add_parser("compare", help="tunesmith and its peers on the same samples and steps, in turn")
    compare.add_argument("works", nargs="*", metavar="WORK", help=f"by default all of them: {', '.join(WORKS)}")
    compare.add_argument("--data", type=Path, default=Path("data"), help="a folder laid out as the specs in examples/ expect")
    compare.add_argument("--peers", nargs="+", default=[], help="by default all that can do the work")
    compare.add_argument("--repeats", type=int, default=3, help="turns")
    compare.add_argument("--steps", type=int, default=0, help="steps of each work; by default the work's own")
    compare.add_argument("--out", type=Path, default=default_out, help="a new folder for results.jsonl, facts.json, report.md and logs/")
    compare.add_argument("--cache", type=Path, default=Path(".bench"), help="where environments and prepared works are kept")
    compare.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="after which a run is ended")
    report = commands.add_parser("report", help="report.md anew, from the results in a folder")
    report.add_argument("out", type=Path)
    overhead = commands.add_parser("overhead", help="the engine beside a bare loop, on a model so small that nothing else counts")
    overhead.add_argument("--steps", type=int, default=200)
    overhead.add_argument("--repeats", type=int, default=5)
    growth = commands.add_parser("growth", help="tokens a second and memory as rows and lengths grow")
    growth.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    growth.add_argument("--lengths", type=int, nargs="*", default=[64, 256, 1024, 2048])
    growth.add_argument("--steps", type=int, default=300, help="or as many as an epoch has")
    growth.add_argument("--repeats", type=int, default=3, help="turns")
    for command in (overhead, growth):
        command.add_argument("--out", type=Path, default=None, help="a file for the figures as JSON")
    return top


def main() -> None:
    """Runs a command."""
    # so that what it started ends with it
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    arguments = parser().parse_args()
    if arguments.command == "compare":
        from bench.compare import main as run
    elif arguments.command == "report":
        from bench.compare import write_report

        write_report(arguments.out)
        return
    elif arguments.command == "overhead":
        from bench.overhead import main as run
    else:
        from bench.growth import main as run
    run(arguments)


if __name__ == "__main__":
    main()
