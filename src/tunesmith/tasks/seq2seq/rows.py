"""What rows hold: a source and its targets, in columns or by language; and what is wrong with them, or odd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.data.cells import canonical_text, is_missing, name_kind
from tunesmith.data.columns import describe_column, read_number
from tunesmith.data.lint import text_hashes
from tunesmith.data.parallel import COLUMN
from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import Decision, Fault, Role
from tunesmith.tasks.seq2seq.section import LANGUAGES, Seq2SeqSpec

SOURCES = ("source", "src", "article", "document", "dialogue", "text", "input", "question", "context", "content", "body")
TARGETS = (
    "target",
    "targets",
    "tgt",
    "summary",
    "summaries",
    "highlights",
    "tldr",
    "abstract",
    "references",
    "output",
    "answer",
    "answers",
)
ROLES = (
    Role("source", "name", False, SOURCES),
    Role("target", "name", False, TARGETS),
    Role("translation", "name", False, (COLUMN, "translations")),
)
UNMISTAKABLE = ("target", "targets", "tgt", "summary", "summaries", "highlights", "tldr")
"""Names of targets; those of an answer may as well be said in a conversation."""
ROW_FIX = "correct the row, or data.on_bad_row=skip"
ODD_RATIO = 9
"""Characters of the longer text for one of the shorter, from which a row is shown (Moses' clean-corpus-n.perl)."""


def recognise(opened: Any) -> str | None:
    """Texts by their languages, or a source beside a target that is a text."""
    by_name = {name.lower(): name for name in opened.names}
    cells = [row.get(by_name.get(COLUMN, "")) for row in opened.sample]
    if cells and all(isinstance(cell, Mapping) and sum(isinstance(text, str) for text in cell.values()) > 1 for cell in cells[:50]):
        return f"texts by their languages: {', '.join(map(str, cells[0]))}"
    source, target = (next((by_name[name] for name in names if name in by_name), None) for names in (SOURCES, UNMISTAKABLE))
    if source is None or target is None:
        return None
    values = [row.get(target) for row in opened.sample]
    if any(isinstance(value, list) and value and all(isinstance(text, str) for text in value) for value in values):
        return f"a {source} and its texts in {target}"
    facts = describe_column(target, values)
    is_text = facts.kind in ("text", "id") and facts.num_distinct > facts.num_values / 2
    is_number = all(read_number(str(value)) is not None for value in values if value is not None)
    return f"a {source} and its {target}, a text" if is_text and not is_number else None


def find_language(language: str, known: Iterable[str]) -> str | None:
    """The name among `known` that means a language: itself, or the one that it begins or that begins it (`en` and `en_XX`)."""
    names = list(known)
    if language in names:
        return language
    found = [name for name in names if name.startswith((f"{language}_", f"{language}-")) or language.startswith((f"{name}_", f"{name}-"))]
    return found[0] if len(found) == 1 else None


def decide_reading(section: Seq2SeqSpec, opened: Any, columns: dict[str, str]) -> list[Decision]:
    """Which language is read and which is written, where rows hold texts by their languages.

    Raises InputError where that cannot be seen, or no row has the language that was said.
    """
    section._rows_have_languages = COLUMN in columns
    if COLUMN not in columns:
        cells = [row.get(columns.get("source", "")) for row in opened.sample]
        joined = [Decision("sources", "joined", "they are lists of sentences: a space is put between")]
        return joined if any(isinstance(cell, list) for cell in cells) else []
    cells = [row.get(columns[COLUMN]) for row in opened.sample]
    known = list(dict.fromkeys(str(name) for cell in cells if isinstance(cell, Mapping) for name in cell))
    said = {field: getattr(section, field) for field in LANGUAGES}
    chosen: dict[str, str] = {}
    for field, language in said.items():
        if language != "auto":
            found = find_language(language, known)
            if found is None:
                raise InputError(
                    "spec.value",
                    "the rows have no text in this language",
                    where=f"task.{field}",
                    found=language,
                    fix=did_you_mean(language, known),
                )
            chosen[field] = found
    if len(set(chosen.values())) < len(chosen):
        raise InputError("spec.conflict", "sources and targets are of one language", where="task.target_language", found=said[LANGUAGES[1]])
    if len(chosen) < 2 and len(known) != 2:
        fix = "name them: task.source_language and task.target_language"
        raise InputError(
            "spec.undecided", "which language becomes which cannot be seen", where="task.source_language", found=", ".join(known), fix=fix
        )
    free = [name for name in known if name not in chosen.values()]
    decisions = []
    for number, (field, language) in enumerate(said.items()):
        if language == "auto":
            which = "other" if chosen else "second" if number else "first"
            decisions.append(Decision(f"task.{field}", free.pop(0), f"the {which} of a row's two"))
    return decisions


def read(section: Seq2SeqSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """The source of a row and its targets. Raises InputError when the columns hold no such thing."""
    if COLUMN not in columns and not {"source", "target"} <= columns.keys():
        shown = ", ".join(f"{role} is {column}" for role, column in columns.items()) or f"columns {', '.join(map(str, row))}"
        fix = "name them: data.columns={source: ..., target: ...}; or list two files of as many lines: data.train=[train.en, train.de]"
        raise InputError(
            "data.ambiguous_columns", "which columns are source and target cannot be seen", where="data.columns", found=shown, fix=fix
        )
    source, fault = _source(section, columns, row)
    targets, no_targets = _targets(section, columns, row)
    faults = [found for found in dict.fromkeys((fault, no_targets)) if found is not None]
    yield from faults or ({"text": source, "label": targets},)


def read_input(section: Seq2SeqSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """The source of a row; targets are not looked at."""
    if COLUMN not in columns and "source" not in columns:
        problem, fix = "which column is the source cannot be seen", "name it: data.columns={source: ...}"
        raise InputError("data.ambiguous_columns", problem, where="data.columns", found=f"columns {', '.join(map(str, row))}", fix=fix)
    source, fault = _source(section, columns, row)
    yield fault or {"text": source}


def _source(section: Seq2SeqSpec, columns: dict[str, str], row: dict[str, Any]) -> tuple[str, Fault | None]:
    # rows to predict may have a column of sources where those of training had texts by language
    if "source" in columns and not (COLUMN in columns and columns[COLUMN] in row):
        value, where = row.get(columns["source"]), f"column {columns['source']}"
        if isinstance(value, (list, tuple)) and value and all(isinstance(part, str) for part in value):
            value = " ".join(value)
    else:
        value, where, fault = _text_in(section.source_language, row.get(columns[COLUMN]))
        if fault is not None:
            return "", fault
    return _checked(value, where, "data.empty_text", "the row has no source")


def _targets(section: Seq2SeqSpec, columns: dict[str, str], row: dict[str, Any]) -> tuple[list[str], Fault | None]:
    if COLUMN in columns:
        value, where, fault = _text_in(section.target_language, row.get(columns[COLUMN]))
        if fault is not None:
            return [], fault
    else:
        value, where = row.get(columns["target"]), f"column {columns['target']}"
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = []
    for number, target in enumerate(values or [None], 1):
        which = f"{where}, target {number} of {len(values)}" if len(values) > 1 else where
        text, fault = _checked(target, which, "data.empty_label", "the row has no target")
        if fault is not None:
            return [], fault
        texts.append(text)
    return texts, None


def _text_in(language: str, cell: Any) -> tuple[Any, str, Fault | None]:
    """The text of a language in a cell of texts by language, where it stands, and what is wrong with the cell."""
    if not isinstance(cell, Mapping):
        problem = f"texts by their languages are expected, and this is {'empty' if is_missing(cell) else name_kind(cell)} (column {COLUMN})"
        return None, "", ("data.column_type", problem, repr(cell)[:80], 'write {"en": "a day", "de": "ein Tag"}')
    name = find_language(language, map(str, cell))
    return None if name is None else cell[name], f"language {language}", None


def _checked(value: Any, where: str, empty_code: str, empty: str) -> tuple[str, Fault | None]:
    if is_missing(value):
        return "", (empty_code, f"{empty} ({where})", repr(value)[:80], ROW_FIX)
    text, fault = canonical_text(value)
    if fault is not None:
        fix = "a text, or a list of texts" if isinstance(value, list) else "write it as a string, or name another column in data.columns"
        return "", (fault[0], f"a text is expected, and this is {name_kind(value)} ({where})", repr(value)[:80], fix)
    return text, None


def remarks(section: Seq2SeqSpec, rows: Any) -> list[Decision]:
    """How many sources stand with several targets, how many targets repeat their source, and how many pairs are of odd lengths."""
    import numpy as np

    repeats, odd = [], []
    num_targets: dict[int, int] = {}
    for start, batch in rows.batches():
        for offset, (source, targets) in enumerate(zip(batch["text"], batch["label"], strict=True)):
            num_targets[len(targets)] = num_targets.get(len(targets), 0) + 1
            if source.strip() in [target.strip() for target in targets]:
                repeats.append(start + offset)
            sizes = [len(source), *map(len, targets)]
            if section._rows_have_languages and max(sizes) > ODD_RATIO * min(sizes):
                odd.append(start + offset)
    _, counts = np.unique(text_hashes(rows), return_counts=True)
    several = int(counts[counts > 1].sum())
    found = []
    if several:
        found.append(Decision("rows of one source", several, "the same source stands in several rows; each is learnt"))
    for name, indices, why in (
        ("targets that repeat their source", repeats, "copying is learnt from them"),
        (
            "pairs of odd lengths",
            odd,
            f"one text has more than {ODD_RATIO} times the characters of the other: look whether they belong together",
        ),
    ):
        if indices:
            found.append(Decision(name, len(indices), f"{why}; the first is {rows.place(indices[0])}"))
    if max(num_targets) > 1:
        shown = ", ".join(f"{count:,} rows have {number}" for number, count in sorted(num_targets.items()))
        found.append(Decision("targets of a row", f"up to {max(num_targets)}", f"{shown}; learnt: {section.targets}"))
    elif section.targets == "each":
        fix = "leave it out"
        raise InputError("spec.no_effect", "no training row has several targets", where="task.targets", found="targets: each", fix=fix)
    return found
