"""Which accelerations a run is given: those that nothing speaks against, each tried on the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import ACCELERATIONS, Decision
from tunesmith.speed.facts import Facts, Unfit, difference

if TYPE_CHECKING:
    import torch


def choose(facts: Facts, off: list[str] | str) -> tuple[list[str], list[Decision]]:
    """Names of the accelerations to apply, in order, and a decision for each there is; the model is left as it was.

    Raises InputError when `off` names one that does not exist.
    """
    _check_names(off)
    reasons: dict[str, str | None] = {}
    for acceleration in ACCELERATIONS:
        is_off = off == "all" or acceleration.name in off
        reasons[acceleration.name] = "switched off in speed.off" if is_off else acceleration.why_not(facts)
    open_names = [name for name, reason in reasons.items() if reason is None]
    if open_names:
        reasons |= _try_together(facts, open_names)
    chosen = [name for name, reason in reasons.items() if reason is None]
    return chosen, [
        Decision(f"speed.{name}", reason is None, reason or ACCELERATIONS.get(name).summary) for name, reason in reasons.items()
    ]


@contextmanager
def accelerated(facts: Facts, names: list[str]) -> Iterator[None]:
    """The model with these accelerations, and as it was afterwards. One that its weights are no longer fit for, as when the best checkpoint
    was read into what was a mapping of a file, is left out."""
    with ExitStack() as undos:
        for name in names:
            with suppress(Unfit):
                undos.callback(ACCELERATIONS.get(name).apply(facts))
        yield


def _try_together(facts: Facts, names: list[str]) -> dict[str, str | None]:
    """Why each is not for this model, or None. All are applied at once; only when the model then computes something else, one after the
    other, each with those that agree."""
    expected = facts.outputs()
    reasons, disagreement = _try(names, facts, expected)
    if disagreement is None:
        return reasons
    chosen: list[str] = []
    for name in [name for name in names if reasons[name] is None]:
        found, disagreement = _try([*chosen, name], facts, expected)
        reasons[name] = found[name] or disagreement
        if reasons[name] is None:
            chosen.append(name)
    return reasons


def _try(names: list[str], facts: Facts, expected: torch.Tensor) -> tuple[dict[str, str | None], str | None]:
    """(why each cannot be applied, or None; why the model does not give the expected outputs with those that can, or None)."""
    with ExitStack() as undos:
        reasons = {name: _apply(name, facts, undos) for name in names}
        try:
            apart = difference(facts.outputs(), expected)
        except Exception as error:  # whatever a model raises, it is computed as transformers does
            return reasons, _said(error)
    return reasons, None if apart <= 1 else f"this model computes something else with it: {apart:.3g} times what rounding explains"


def _apply(name: str, facts: Facts, undos: ExitStack) -> str | None:
    """Why the acceleration cannot be applied, or None; then `undos` takes it away."""
    try:
        undos.callback(ACCELERATIONS.get(name).apply(facts))
    except Unfit as reason:
        return str(reason)
    except Exception as error:  # a model of whatever make: it is computed as transformers does
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return f"the model cannot be computed so ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


def _check_names(off: list[str] | str) -> None:
    names = ACCELERATIONS.names()
    for name in off if isinstance(off, list) else []:
        if name not in names:
            raise InputError(
                "spec.unknown_name", "there is no acceleration of this name", where="speed.off", found=name, fix=did_you_mean(name, names)
            )
