"""tunesmith beside its peers: the same samples, as many steps, the same machine, in turn, each run in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.peers import CANNOT_RUN, PEERS, Peer, python_of
from bench.processes import run_watched
from bench.samples import prepare_work
from bench.table import markdown
from bench.works import WORKS, Work

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 3
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}

Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is compared, and where things go."""

    data: Path
    out: Path
    cache: Path
    """Environments and prepared works; can be made again."""
    repeats: int
    steps: int
    """Steps of each work; 0 is the work's own."""
    timeout_seconds: float


def compare(works: list[Work], peers: list[Peer], options: Options) -> None:
    """Runs everything, appends each run to results.jsonl, and writes report.md."""
    options.out.mkdir(parents=True, exist_ok=True)
    facts: list[Result] = [_machine()]
    for work in works:
        folder = (options.cache / "works" / work.name).absolute()
        settings = prepare_work(work, options.data, options.steps or work.steps, folder)
        limit = _limit(folder)
        facts.append({"work": work.name, "summary": work.summary, **settings, **limit})
        (options.out / "facts.json").write_text(json.dumps(facts, indent=2))
        able = [peer for peer in peers if peer.does(work)]
        # what tunesmith measures once on a machine and keeps is measured before
        if any(peer.name == "tunesmith" for peer in able):
            run_peer(PEERS["tunesmith"], folder, settings, limit, options)
        for repeat in range(options.repeats):
            for peer in able:
                result = run_peer(peer, folder, settings, limit, options)
                _append(options.out / "results.jsonl", {"repeat": repeat, **result})
                shown = result.get("error") or f"{result['seconds']:.2f} s, {result['samples_per_second']:.1f} samples/s"
                print(f"{work.name}  {peer.name}  {repeat + 1}/{options.repeats}  {shown}", flush=True)
    write_report(options.out)


def write_report(out: Path) -> None:
    """report.md, from results.jsonl and facts.json."""
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    summaries = {peer.name: peer.summary for peer in PEERS.values()}
    text = markdown(json.loads((out / "facts.json").read_text()), results, summaries, CANNOT_RUN)
    (out / "report.md").write_text(text)
    print(text)


def run_peer(peer: Peer, folder: Path, settings: Result, limit: Result, options: Options) -> Result:
    """One run of a peer on a prepared work, or how it failed."""
    named = {"work": settings["name"], "peer": peer.name}
    try:
        python = python_of(peer, options.cache.absolute() / "venvs")
    except RuntimeError as error:
        return {**named, "error": str(error)}
    logs = options.out.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        request = {"folder": str(folder), "variant": peer.variant, "scratch": scratch, "out": f"{scratch}/result.json"}
        Path(scratch, "request.json").write_text(json.dumps(request))
        others = psutil.cpu_percent(interval=0.5)
        command = [python, "-m", f"bench.peers.{peer.module}", f"{scratch}/request.json"]
        log = logs / f"{settings['name']}-{peer.name}.log"
        watched = run_watched(command, {**ENVIRONMENT, **peer.environment}, Path(scratch), options.timeout_seconds, log)
        if watched.returncode:
            return {**named, "error": watched.error, "other_processes_percent": others}
        record = json.loads(Path(scratch, "result.json").read_text())
    peaks = {"peak_mb": watched.peak_bytes(record["step_ends"][-1]) / 1e6, "peak_in_all_mb": watched.peak_bytes() / 1e6}
    return {**named, **summarise(record, settings, limit), **peaks, "other_processes_percent": others}


def summarise(record: Result, settings: Result, limit: Result) -> Result:
    """Rates of a run after its first steps (of a probe or a prediction: of all of it), and what else it recorded."""
    ends, tokens = [record["started"], *record["step_ends"]], record["tokens"]
    times = [after - before for before, after in itertools.pairwise(ends)]
    rows, all_tokens = settings["steps"] * settings["batch_size"], settings["steps"] * limit["tokens_per_step"]
    is_trained = settings["kind"] == "train"
    first = min(WARM_UP_STEPS, len(times) - 1) if is_trained else 0
    seconds = sum(times[first:])
    share = 1 - first / len(times)
    notes = record["notes"]
    if is_trained and record["trainable"] not in (0, settings["trainable"]):
        notes = [*notes, f"{record['trainable']:,} parameters trained, by tunesmith {settings['trainable']:,}"]
    timed_tokens = sum(tokens[first:]) if is_trained else all_tokens
    return {
        "seconds": seconds / (len(times) - first) if is_trained else seconds,
        "seconds_with_first_steps": sum(times) / len(times) if is_trained else seconds,
        "samples_per_second": rows * share / seconds,
        "tokens_per_second": timed_tokens / seconds,
        "limit_share": limit["operations"] * timed_tokens / all_tokens / seconds / 1e9 / limit["gflops"],
        "step_seconds": times,
        "notes": notes,
        **{name: record[name] for name in ("losses", "tokens", "metrics", "trainable")},
    }


def _limit(folder: Path) -> Result:
    done = subprocess.run([sys.executable, "-m", "bench.limit", str(folder)], capture_output=True, text=True, check=True, cwd=ROOT)
    limit: Result = json.loads(done.stdout.splitlines()[-1])
    return limit


def _machine() -> Result:
    from tunesmith.runs.environment import describe_environment

    environment: Result = describe_environment()
    return environment


def _append(path: Path, result: Result) -> None:
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def chosen(names: list[str], all_of: dict[str, Any], default: list[str], what: str) -> list[Any]:
    """The records of these names, tunesmith first.

    Raises SystemExit when there is no such record.
    """
    unknown = [name for name in names if name not in all_of]
    if unknown:
        raise SystemExit(f"no such {what}: {', '.join(unknown)}; there are {', '.join(all_of)}")
    return [all_of[name] for name in all_of if name in (names or default)]


def main(arguments: Any) -> None:
    """`python -m bench compare`."""
    works = chosen(arguments.works, WORKS, list(WORKS), "work")
    peers = chosen(arguments.peers, PEERS, [peer.name for peer in PEERS.values() if peer.by_default], "peer")
    if not arguments.data.is_dir():
        raise SystemExit(f"there is no folder {arguments.data}: give --data, laid out as the specs in examples/ expect")
    if (arguments.out / "results.jsonl").exists():
        raise SystemExit(f"{arguments.out} holds results already: give another --out")
    options = Options(arguments.data, arguments.out, arguments.cache, arguments.repeats, arguments.steps, arguments.timeout)
    compare(works, peers, options)
