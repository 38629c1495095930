"""Changes of a model instance that are undone exactly."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch


def override(forwards: Mapping[Any, Callable[..., Any]]) -> Callable[[], None]:
    """Gives modules a `forward` of their own, and returns what takes it away again."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward

    def undo() -> None:
        for module, own in before.items():
            if own is None:
                del module.__dict__["forward"]
            else:
                module.forward = own

    return undo


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type that a matrix product of the tensor is computed in here."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def body_of(kind: type[Any], method: str = "forward") -> str:
    """The statements of a method of a class, without comments and layout; empty where there is no source."""
    return _body_of(kind, method)  # type: ignore[arg-type]


@functools.cache
def _body_of(kind: Hashable, method: str) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(kind, method))))
    except (AttributeError, OSError, TypeError, SyntaxError):
        return ""
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return "\n".join(map(ast.unparse, statements))
