"""Which column is the text and which the label: taken from the spec, from well-known names, or from what the columns hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tunesmith.errors import InputError, Problem, did_you_mean
from tunesmith.registry import Decision, Role
from tunesmith.spec import DataSpec

PAIRS = (("premise", "hypothesis"), ("question", "sentence"), ("query", "passage"), ("query", "document"), ("question", "answer"))
"""Names of two columns that are read together, beside those that differ in a final 1/2 or a/b."""


@dataclass(frozen=True)
class ColumnFacts:
    """What a sample of one column holds."""

    name: str
    num_values: int
    num_distinct: int
    words: float
    """Mean number of words."""
    kind: str
    """`text`, `label`, `number`, `list`, `index`, `id`, `constant` or `empty`."""
    example: str


def describe_column(name: str, values: Sequence[Any]) -> ColumnFacts:
    """What the values of one column look like."""
    present = [value for value in values if value is not None and value != ""]
    texts = [value if isinstance(value, str) else _shown(value) for value in present]
    distinct = len(set(texts))
    words = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    example = texts[0][:40] if texts else ""
    return ColumnFacts(name, len(values), distinct, words, _kind(present, texts, distinct, words), example)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:  # nested a thousand levels deep
        return f"a deep {type(value).__name__}"


def _kind(present: Sequence[Any], texts: Sequence[str], distinct: int, words: float) -> str:
    if not present:
        return "empty"
    if isinstance(present[0], (list, tuple)):
        return "list"
    if distinct == 1 and len(texts) > 20:
        return "constant"
    numbers = [read_number(text) for text in texts]
    if all(number is not None for number in numbers):
        steps = {second - first for first, second in pairwise(numbers) if first is not None and second is not None}
        if len(texts) > 10 and steps == {1.0}:
            return "index"
        whole = all("." not in text and "e" not in text.lower() for text in texts)
        if whole and distinct <= max(20, len(texts) // 20):
            return "label"
        return "id" if whole and distinct > 0.9 * len(texts) else "number"
    if words >= 2.5 and distinct > 0.3 * len(texts):
        return "text"
    if distinct <= max(20, len(texts) // 5):
        return "label"
    return "id" if words < 1.5 else "text"


def read_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def assign_columns(
    names: Sequence[str], sample: Sequence[dict[str, Any]], data: DataSpec, roles: Sequence[Role]
) -> tuple[dict[str, str], list[Decision]]:
    """The column of each role, and why; a role that is not required may be absent.

    Raises InputError when a named column does not exist or the choice cannot be seen.
    """
    facts = {name: describe_column(name, [row.get(name) for row in sample]) for name in names}
    given = {} if data.columns == "auto" else dict(data.columns)
    _check_given(given, names, roles)
    chosen = dict(given)
    reasons = dict.fromkeys(given, "named in the spec")
    free = [name for name in names if name not in given.values()]
    if "text" not in chosen and "pair" not in chosen and any(role.name == "pair" for role in roles):
        pair = find_pair(free, facts)
        if pair is not None:
            chosen.update(text=pair[0], pair=pair[1])
            reasons.update(text="the first of a pair of texts", pair=f"stands beside {pair[0]}")
    for role in roles:
        # where the spec names columns, a role that only its name tells is not looked for
        if role.name in chosen or (given and role.kind == "name"):
            continue
        free = [name for name in names if name not in chosen.values()]
        column, reason = _choose(role, free, facts)
        if column is not None:
            chosen[role.name], reasons[role.name] = column, reason
        elif role.required:
            raise _cannot_see(role, free, facts, roles, chosen)
    decisions = [Decision(f"data.columns.{role}", column, reasons[role]) for role, column in chosen.items() if role not in given]
    unused = [name for name in names if name not in chosen.values()]
    if unused and decisions:
        decisions.append(Decision("data.columns", chosen, "not used: " + ", ".join(unused)))
    return chosen, decisions


def _check_given(given: dict[str, str], names: Sequence[str], roles: Sequence[Role]) -> None:
    known = [role.name for role in roles]
    problems: list[Problem] = []
    for role, column in given.items():
        where = f"data.columns.{role}"
        if role not in known:
            # the two may have been said the wrong way round: `review: text`
            fix = f"the role comes first: {column}: {role}" if column in known and role in names else did_you_mean(role, known)
            problems.append(Problem("spec.unknown_key", f"{where} is not a column of this task", where, role, fix))
        elif column not in names:
            problems.append(
                Problem("data.missing_column", "the data has no column of this name", where, column, did_you_mean(column, names))
            )
    for column in sorted({column for column in given.values() if list(given.values()).count(column) > 1}):
        two = " and ".join(role for role in given if given[role] == column)
        fix = "name another column for one of them"
        problems.append(Problem("spec.conflict", "data.columns gives two roles to one column", "data.columns", f"{column} is {two}", fix))
    if problems:
        raise InputError.from_problems(problems)


def find_pair(names: Sequence[str], facts: dict[str, ColumnFacts]) -> tuple[str, str] | None:
    """Two text columns whose names belong together."""
    texts = [name for name in names if facts[name].kind == "text"]
    lower = {name.lower(): name for name in texts}
    for first, second in PAIRS:
        if first in lower and second in lower:
            return lower[first], lower[second]
    for first in texts:
        for old, new in (("1", "2"), ("a", "b"), ("A", "B")):
            for match in re.finditer(rf"(?<![A-Za-z0-9]){old}(?![A-Za-z0-9])|{old}$", first):
                second = first[: match.start()] + new + first[match.end() :]
                if second in texts:
                    return first, second
    return None


def _choose(role: Role, free: Sequence[str], facts: dict[str, ColumnFacts]) -> tuple[str | None, str]:
    by_lower = {name.lower().strip(): name for name in free}
    for known in role.known_names:
        if known in by_lower and facts[by_lower[known]].kind not in ("index", "empty"):
            return by_lower[known], "known by its name"
    if not role.required:
        return None, ""
    kinds = {"text": ("text",), "label": ("label", "list", "number")}[role.kind]
    fitting = [name for name in free if facts[name].kind in kinds]
    if role.kind == "label" and len(fitting) > 1:
        fitting = [name for name in fitting if facts[name].kind != "number"] or fitting
    if len(fitting) == 1:
        found = facts[fitting[0]]
        why = f"the only column of texts ({found.words:.0f} words on average)" if role.kind == "text" else _why_label(found)
        return fitting[0], why
    return None, ""


def _why_label(found: ColumnFacts) -> str:
    if found.kind in ("list", "number"):
        return f"the only column of {found.kind}s"
    return f"the only column with few values ({found.num_distinct} in {found.num_values:,} rows)"


def _cannot_see(
    role: Role, free: Sequence[str], facts: dict[str, ColumnFacts], roles: Sequence[Role], chosen: dict[str, str]
) -> InputError:
    described = [
        f"{fact.name[:40]} ({fact.kind}, {fact.num_distinct} different in {fact.num_values} rows, e.g. {fact.example!r})"
        for fact in (facts[name] for name in free[:8])
    ]
    shown = "; ".join([*described, *([f"and {len(free) - 8} more"] if len(free) > 8 else [])])
    example = ", ".join(f"{item.name}: ..." for item in roles if item.required or item.name == "pair")
    return InputError(
        "data.ambiguous_columns",
        f"which column is the {role.name} cannot be seen",
        where="data.columns",
        found=shown or "no column is left: " + ", ".join(f"{name} is {column}" for name, column in chosen.items()),
        fix=f"name them: data.columns={{{example}}}, pair only for pairs of texts",
    )
