"""Which accelerations a run is given: those that nothing speaks against, each tried on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import ACCELERATIONS, Acceleration, Decision
from tunesmith.speed.facts import Facts, Unfit, difference

if TYPE_CHECKING:
    import torch


def choose(facts: Facts, off: list[str] | str) -> tuple[list[str], list[Decision]]:
    """Names of the accelerations to apply, in order, and a decision for each there is; the model is left as it was.

    Raises InputError when `off` names one that does not exist.
    """
    _check_names(off)
    if off == "all":
        return [], [Decision(f"speed.{acceleration.name}", False, "switched off in speed.off") for acceleration in ACCELERATIONS]
    chosen: list[str] = []
    decisions = []
    expected = facts.outputs()
    for acceleration in ACCELERATIONS:
        reason = "switched off in speed.off" if acceleration.name in off else acceleration.why_not(facts)
        if reason is None:
            reason = _try(acceleration, facts, expected)
        if reason is None:
            chosen.append(acceleration.name)
        decisions.append(Decision(f"speed.{acceleration.name}", reason is None, reason or acceleration.summary))
    if chosen and not _agree(facts, chosen, expected):
        return [], [Decision(decision.field, False, "together they compute something else on this model") for decision in decisions]
    return chosen, decisions


@contextmanager
def accelerated(facts: Facts, names: list[str]) -> Iterator[None]:
    """The model with these accelerations, and as it was afterwards."""
    with ExitStack() as undos:
        for name in names:
            undos.callback(ACCELERATIONS.get(name).apply(facts))
        yield


def _try(acceleration: Acceleration, facts: Facts, expected: torch.Tensor) -> str | None:
    """Why the acceleration is not for this model, or None when the model gives the expected outputs with it."""
    undo: Callable[[], None] | None = None
    try:
        undo = acceleration.apply(facts)
        found = facts.outputs()
    except Unfit as reason:
        return str(reason)
    except Exception as error:  # a model of whatever make: it is computed as transformers does
        return f"the model cannot be computed so ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    finally:
        if undo is not None:
            undo()
    apart = difference(found, expected)
    return None if apart <= 1 else f"this model computes something else with it: {apart:.3g} times what rounding explains"


def _agree(facts: Facts, names: list[str], expected: torch.Tensor) -> bool:
    """Whether the model gives the expected outputs with all of them."""
    with accelerated(facts, names):
        return difference(facts.outputs(), expected) <= 1


def _check_names(off: list[str] | str) -> None:
    names = ACCELERATIONS.names()
    for name in off if isinstance(off, list) else []:
        if name not in names:
            raise InputError(
                "spec.unknown_name", "there is no acceleration of this name", where="speed.off", found=name, fix=did_you_mean(name, names)
            )
