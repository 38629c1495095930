"""What is no longer as it was when a run was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import InputError, Problem

CHANGEABLE = (
    "train.epochs",
    "train.max_steps",
    "train.learning_rate",
    "train.lr_scheduler_type",
    "train.warmup_steps",
    "train.max_grad_norm",
    "train.max_tokens_per_micro_batch",
    "train.save_total_limit",
    "train.eval_batch_size",
    "train.on_non_finite",
    "speed.off",
    "data.root",
)
"""Settings that may be others when a run goes on: the same steps and rows still mean the same."""
SCHEDULE = CHANGEABLE[:5]
"""Those of them that the learning rate of each step depends on."""
WITHOUT_EFFECT_ON_BITS = ("platform", "memory_gb", "cores")
Changes = dict[str, tuple[Any, Any]]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Changes:
    """{dotted key: (before, now)} of what differs in nested plain values."""
    found: Changes = {}
    for key in dict.fromkeys([*before, *now]):
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= differences(old, new, f"{name}.")
        elif old != new and name not in WITHOUT_EFFECT_ON_BITS:
            found[name] = (old, new)
    return found


def check_changes(spec: Changes, environment: Changes, asked: tuple[str, ...], accepted: bool) -> None:
    """Refuses what differs from the checkpoint, unless it was asked for by name, or is accepted and leaves steps and rows their meaning.

    Raises InputError with every difference.
    """
    problems: list[Problem] = []
    accept = "change it back; or `tunesmith resume --accept-changes`"
    for key, (old, new) in spec.items():
        if key not in CHANGEABLE:
            fix = "change it back; or train a new run: steps and rows of this one would no longer mean the same"
        elif accepted or key in asked:
            continue
        else:
            fix = accept
        problems.append(Problem("run.changed", "the spec is not the one that the run was stopped with", key, f"{old} became {new}", fix))
    for key, (old, new) in environment.items() if not accepted else ():
        problem = "the environment is not the one that the run was stopped in: its bits may be others from here on"
        problems.append(Problem("run.changed", problem, key, f"{old} became {new}", accept))
    if problems:
        raise InputError.from_problems(problems)
