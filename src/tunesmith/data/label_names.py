"""Names of labels: lists of them, files of them, and names that look like a slip of the pen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from tunesmith.data.columns import read_number
from tunesmith.errors import InputError, nearest
from tunesmith.strict import near_file


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError when these cannot be the names of classes."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"should be different names, and {', '.join(twice)} is said twice")
    if len(names) < 2 or not all(name.strip() for name in names):
        raise ValueError("should be two names or more, none of them empty")


def _check_label_names(value: Any) -> Any:
    if not isinstance(value, str):
        check_names(list(value.values()) if isinstance(value, dict) else value)
    return value


LabelNames = Annotated[dict[str, str] | list[str] | str, AfterValidator(_check_label_names)]
"""A setting that names labels which are ids: a mapping, a list, a file, or `none`."""


def read_label_names(path: Path) -> list[str]:
    """The names in a file, one a line. Raises InputError when it holds none."""
    fix = "a file with one name a line, in UTF-8; or the names themselves: [first, second]"
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        near = near_file(path)
        problem, found = "the file of label names cannot be read", f"{path}: {getattr(error, 'strerror', None) or error}"
        raise InputError("data.no_such_file", problem, where="task.label_names", found=found, fix=f"{near}; or {fix}") from None
    try:
        names = [name.strip() for name in content.decode("utf-8-sig").splitlines() if name.strip()]
        check_names(names)
    except UnicodeDecodeError as error:
        where = f"{path.name}:{content.count(bytes([10]), 0, error.start) + 1}"
        found = f"byte 0x{content[error.start]:02x}"
        raise InputError(
            "data.encoding", "the file of label names is not UTF-8", where=where, found=found, fix="save it as UTF-8"
        ) from None
    except ValueError as error:
        raise InputError("spec.value", f"the file of label names {error}", where=path.name, fix=fix) from None
    return names


def misspelt(label: str, label_counts: Counter[str]) -> str | None:
    """The common label that a rare one looks like, or None."""
    count = label_counts[label]
    for other, other_count in label_counts.items():
        if other != label and other.strip().casefold() == label.strip().casefold() and (other_count, other) > (count, label):
            return other
    common = [other for other, other_count in label_counts.items() if other_count >= 10 * count]
    if count > 3 or not common or len(label) < 4 or read_number(label) is not None:
        return None
    match = nearest(label, common)
    return match if match is not None and _edits(label, match) <= (1 if len(label) < 8 else 2) else None


def _edits(first: str, second: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(second) + 1))
    for index, letter in enumerate(first, 1):
        previous, row[0] = row[0], index
        for column, other in enumerate(second, 1):
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, previous + (letter != other))
    return row[-1]
