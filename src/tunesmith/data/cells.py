"""Cells of data files as tasks read them: a text, or a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.registry import Fault

Canonical = tuple[Any, tuple[str, str, str] | None]
_SKIP = "correct the row, or data.on_bad_row=skip"


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, white space, or NaN, which is how tables write null among numbers."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def name_kind(value: Any) -> str:
    """A type in the words of data files."""
    names = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def canonical_text(value: Any) -> Canonical:
    """A text as it is, or (code, problem, fix)."""
    if is_missing(value):
        return None, ("data.empty_text", "the row has no text", _SKIP)
    if not isinstance(value, str):
        return None, (
            "data.column_type",
            f"the text is {name_kind(value)}",
            "write it as a string, or name another column in data.columns",
        )
    return value, None


def canonical_label(value: Any) -> Canonical:
    """A label cell as a list of strings, or (code, problem, fix)."""
    if is_missing(value):
        return None, ("data.empty_label", "the row has no label", _SKIP)
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    labels: list[str] = []
    for part in parts:
        if isinstance(part, bool):
            labels.append("true" if part else "false")
        elif isinstance(part, (str, int, float)):
            labels.append(str(part))
        else:
            return None, ("data.column_type", f"a label is {name_kind(part)}", "a label is a string, a number or a list of these")
    return labels, None


def read_cells(kinds: Mapping[str, str], columns: Mapping[str, str], row: Mapping[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """The one canonical row of a row whose cells are texts and labels, or the first thing that is wrong with it.

    kinds maps roles to `text` or `labels`, columns maps the roles that are there to their columns.
    """
    canonical: dict[str, Any] = {}
    for role, kind in kinds.items():
        if role not in columns:
            continue
        value = row.get(columns[role])
        canonical[role], fault = canonical_text(value) if kind == "text" else canonical_label(value)
        if fault is not None:
            code, problem, fix = fault
            yield code, f"{problem} (column {columns[role]})", repr(value)[:100], fix
            return
    yield canonical
