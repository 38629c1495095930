"""Markdown of measured runs: medians over repeats, and the range of the ratios."""

from __future__ import annotations

import statistics
from typing import Any

Result = dict[str, Any]
HEADINGS = (
    "", "seconds", "with first steps", "samples/s", "tokens/s", "tunesmith is faster by", "loss, first to last", "held", "peak MB", "of limit", "remarks",
)  # fmt: skip


def markdown(facts: list[Result], results: list[Result], summaries: dict[str, str], cannot_run: dict[str, str]) -> str:
    """A table for each work."""
    machine, *works = facts
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; {machine['platform']}; {versions}", ""]
    for work in works:
        lines += _work_lines(work, [result for result in results if result["work"] == work["work"]])
    names = dict.fromkeys(result["peer"] for result in results)
    lines += [f"- {name}: {summaries[name]}" for name in names]
    lines += [f"- {name} cannot be compared here: {reason}" for name, reason in cannot_run.items()]
    return "\n".join(lines) + "\n"


def _work_lines(work: Result, results: list[Result]) -> list[str]:
    unit = "seconds a step" if work["kind"] == "train" else "seconds in all"
    busy = max((result.get("other_processes_percent", 0) for result in results), default=0)
    lines = [
        f"## {work['work']}", "", f"{work['summary']}: {work['steps']} steps of {work['batch_size']} rows, {work['tokens_per_step']:,} tokens a step; "
        f"{work['operations'] / work['steps'] / 1e9:,.0f} GFLOP a step are necessary, and {'bf16' if work['bf16'] else 'fp32'} products at these "
        f"shapes run at {work['gflops']:,.0f} GFLOP/s ({unit}; other processes used up to {busy:.0f}% of the machine).", "",
        "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|",
    ]  # fmt: skip
    own = {result["repeat"]: result for result in results if result["peer"] == "tunesmith" and "error" not in result}
    for peer in dict.fromkeys(result["peer"] for result in results):
        lines.append(_line(peer, [result for result in results if result["peer"] == peer], own, work["kind"]))
    return [*lines, ""]


def _line(peer: str, results: list[Result], own: dict[int, Result], kind: str) -> str:
    good = [result for result in results if "error" not in result]
    if not good:
        return f"| {peer} |" + " |" * (len(HEADINGS) - 2) + f" failed: {results[-1]['error']} |"
    last = good[-1]
    losses = f"{last['losses'][0]:.3f} to {last['losses'][-1]:.3f}" if last["losses"] else ""
    held = ", ".join(f"{name} {value:.4f}" for name, value in last["metrics"].items() if name in ("accuracy", "loss"))
    failed = [f"{len(results) - len(good)} of {len(results)} failed: {results[-1].get('error', '')}"] if len(good) < len(results) else []
    cells = [
        peer, _spread(good, "seconds", "{:.3f}"), _spread(good, "seconds_with_first_steps", "{:.3f}") if kind == "train" else "",
        f"{_median(good, 'samples_per_second'):.1f}", f"{_median(good, 'tokens_per_second'):,.0f}", _ratio(good, own),
        losses, held, f"{_median(good, 'peak_mb'):,.0f}", f"{_median(good, 'limit_share'):.0%}", "; ".join([*last["notes"], *failed]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _ratio(results: list[Result], own: dict[int, Result]) -> str:
    """How many times as many tokens a second tunesmith handles, in the same turn."""
    ratios = ratios_of(results, own)
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def ratios_of(results: list[Result], own: dict[int, Result]) -> list[float]:
    """tunesmith's tokens a second over the peer's, for each turn that both ended."""
    return [own[result["repeat"]]["tokens_per_second"] / result["tokens_per_second"] for result in results if result["repeat"] in own]


def _median(results: list[Result], name: str) -> float:
    return float(statistics.median(result[name] for result in results))


def _spread(results: list[Result], name: str, shown: str) -> str:
    values = [result[name] for result in results]
    return f"{shown.format(_median(results, name))} ({shown.format(min(values))} to {shown.format(max(values))})"
