"""What rows hold: tokens with tags, or a text with spans of characters; and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from tunesmith.data.cells import canonical_text, is_missing, name_kind
from tunesmith.data.tag_schemes import Span, write_tags
from tunesmith.errors import InputError
from tunesmith.registry import Fault, Role
from tunesmith.tasks.token_classification.section import TokenClassificationSpec

ROLES = (
    Role("tokens", "name", False, ("tokens", "token", "words", "word", "form", "forms")),
    Role("tags", "name", False, ("tags", "tag", "ner_tags", "labels", "label", "upos", "pos_tags", "xpos", "pos")),
    Role("text", "name", False, ("text", "sentence", "content", "document", "body", "message", "tweet")),
    Role("spans", "name", False, ("spans", "entities", "annotations")),
)
STARTS, ENDS = ("start", "start_offset", "begin"), ("end", "end_offset", "stop")
TYPES = ("label", "type", "tag", "entity", "entity_group")
ROW_FIX = "correct the row, or data.on_bad_row=skip"
SHAPES = "tokens and tags, or text and spans"
Offsets = list[tuple[int, int]]


def recognise(opened: Any) -> str | None:
    """Sentences in columns, lists of tokens beside lists as long, or a text beside a list of spans."""
    if all(origin.dialect.format == "conll" for origin in opened.origins["train"]):
        return "words in columns, with blank lines between sentences" if len(opened.names) > 1 else None
    by_role = {role.name: next((name for name in opened.names if name.lower() in role.known_names), "") for role in ROLES}
    for row in opened.sample:
        tokens, tags = row.get(by_role["tokens"]), row.get(by_role["tags"])
        if isinstance(tokens, list) and isinstance(tags, list) and tokens and len(tokens) == len(tags):
            return "lists of tokens with as many tags"
        found = row.get(by_role["spans"] or by_role["tags"])
        if isinstance(row.get(by_role["text"]), str) and isinstance(found, list) and found and all(map(_read_span, found)):
            return "texts with spans of characters"
    return None


def text_words(text: str, words: str) -> Offsets:
    """Where the words of a text begin and end, in characters."""
    from tokenizers import pre_tokenizers

    if words == "characters":
        return [(index, index + 1) for index, character in enumerate(text) if not character.isspace()]
    cut = pre_tokenizers.BertPreTokenizer() if words == "punctuation" else pre_tokenizers.WhitespaceSplit()
    return [offsets for _, offsets in cut.pre_tokenize_str(text)]


def read(section: TokenClassificationSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """Tokens, their tags, and the text where the row is one.

    Raises InputError when the columns hold nothing to learn from.
    """
    if "tokens" in columns and "tags" in columns:
        return _read_tokens(columns, row)
    # without tokens, `labels` beside a text are spans
    spans = columns.get("spans", columns.get("tags", ""))
    if "text" in columns and spans and "tokens" not in columns:
        return _read_spans(section, columns["text"], spans, row)
    shown = ", ".join(f"{role} is {column}" for role, column in columns.items()) or f"columns {', '.join(map(str, row))}"
    fix = "name them: data.columns={tokens: ..., tags: ...} or data.columns={text: ..., spans: ...}"
    raise InputError("data.ambiguous_columns", f"which columns hold {SHAPES} cannot be seen", where="data.columns", found=shown, fix=fix)


def read_input(section: TokenClassificationSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterable[dict[str, Any] | Fault]:
    """Tokens, or the words of a text; tags are not looked at."""
    if "tokens" in columns and not is_missing(row.get(columns["tokens"])):
        tokens, fault = _list_of(row.get(columns["tokens"]), "tokens")
        faults = [fault] if fault else list(_token_faults(tokens))
        yield from faults or ({"words": tokens, "source_text": None},)
        return
    if "text" not in columns:
        problem = "which column holds tokens or a text cannot be seen"
        fix = "name it: data.columns={tokens: ...} or data.columns={text: ...}"
        raise InputError("data.ambiguous_columns", problem, where="data.columns", found=f"columns {', '.join(map(str, row))}", fix=fix)
    text, offsets, fault = _words_of(section, row.get(columns["text"]))
    yield fault or {"words": [text[start:end] for start, end in offsets], "source_text": text}


def _list_of(value: Any, what: str) -> tuple[list[Any], Fault | None]:
    """A list, or the words of a cell that parts them by blanks."""
    if isinstance(value, str):
        return value.split(), None
    if isinstance(value, (list, tuple)):
        return list(value), None
    if is_missing(value):
        return [], ("data.empty_text" if what == "tokens" else "data.empty_label", f"the row has no {what}", repr(value), ROW_FIX)
    return [], ("data.column_type", f"the {what} are {name_kind(value)}", repr(value)[:80], f"{what} are a list")


def _token_faults(tokens: Sequence[Any]) -> Iterator[Fault]:
    if not tokens:
        yield "data.empty_text", "the row has no tokens", "an empty list", ROW_FIX
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str):
            yield "data.column_type", f"token {number} is {name_kind(token)}", repr(token)[:80], "tokens are a list of texts"
            return
        if not token.strip():
            yield "data.empty_text", f"token {number} is empty", repr(token), ROW_FIX


def _read_tokens(columns: dict[str, str], row: dict[str, Any]) -> Iterator[dict[str, Any] | Fault]:
    (tokens, no_tokens), (tags, no_tags) = (_list_of(row.get(columns[role]), role) for role in ("tokens", "tags"))
    faults = [fault for fault in (no_tokens, no_tags) if fault]
    if not faults:
        faults = list(_token_faults(tokens))
    if not faults and len(tokens) != len(tags):
        found = f"{len(tokens)} tokens and {len(tags)} tags: {' '.join(map(str, tokens))[:60]}"
        faults.append(("data.tags", "the row has not one tag for each token", found, ROW_FIX))
    for number, tag in enumerate(tags, 1):
        if isinstance(tag, bool) or not isinstance(tag, (str, int)) or not str(tag).strip():
            kind = "empty" if is_missing(tag) else name_kind(tag)
            faults.append(("data.empty_label", f"tag {number} is {kind}", repr(tag)[:80], "a tag is a text, or an id"))
            break
    yield from faults or ({"words": tokens, "source_text": None, "label": [str(tag) for tag in tags]},)


def _words_of(section: TokenClassificationSpec, value: Any) -> tuple[str, Offsets, Fault | None]:
    text, wrong = canonical_text(value)
    if wrong is not None:
        code, problem, fix = wrong
        return "", [], (code, problem, repr(value)[:80], fix)
    return text, text_words(text, section.words), None


def _read_span(value: Any) -> tuple[int, int, str] | None:
    """(start, end, type) that a triple or an object says, or None."""
    parts = list(value) if isinstance(value, (list, tuple)) else []
    if isinstance(value, dict):
        parts = [next((value[name] for name in names if value.get(name) is not None), None) for names in (STARTS, ENDS, TYPES)]
    if len(parts) != 3 or not isinstance(parts[2], str) or not parts[2].strip():
        return None
    if any(isinstance(part, bool) or not isinstance(part, int) for part in parts[:2]):
        return None
    return parts[0], parts[1], parts[2]


def _read_spans(
    section: TokenClassificationSpec, text_column: str, spans_column: str, row: dict[str, Any]
) -> Iterator[dict[str, Any] | Fault]:
    text, offsets, fault = _words_of(section, row.get(text_column))
    listed = row.get(spans_column)
    if fault is None and not isinstance(listed, (list, tuple)):
        code = "data.empty_label" if is_missing(listed) else "data.column_type"
        kind = "missing" if is_missing(listed) else name_kind(listed)
        fault = (code, f"the spans are {kind} (column {spans_column})", repr(listed)[:80], "a list; [] where the text has none")
    if fault is not None:
        yield fault
        return
    faults: list[Fault] = []
    entities: list[Span] = []
    for value in listed or ():
        found = _read_span(value)
        if found is None:
            fix = 'write {"start": 0, "end": 4, "label": "person"} or [0, 4, "person"]'
            faults.append(("data.span", "a span is not a start, an end and a label", repr(value)[:80], fix))
            continue
        placed = _place(found, text, offsets, section.words)
        if len(placed) == 4:
            faults.append(placed)
        else:
            entities.append(placed)
    entities.sort(key=lambda entity: entity[1:])
    for first, second in pairwise(entities):
        if second[1] < first[2]:
            shown = " and ".join(f"{name} {text[offsets[start][0] : offsets[end - 1][1]]!r}" for name, start, end in (first, second))
            faults.append(("data.span", "two spans overlap", shown[:100], "a word has one tag: keep one of the two"))
    tags = [] if faults else write_tags(entities, len(offsets), "IOB2")
    yield from faults or ({"words": [text[start:end] for start, end in offsets], "source_text": text, "label": tags},)


def _place(span: tuple[int, int, str], text: str, offsets: Offsets, words: str) -> Span | Fault:
    """The words that a span of characters covers, or what is wrong with it."""
    start, end, name = span
    if not 0 <= start < end <= len(text):
        found = f"{name} from {start} to {end}, in a text of {len(text)} characters"
        return "data.span", "a span lies outside of its text, or is empty", found, "count characters from 0; the end is that after the last"
    inside = [index for index, (first, after) in enumerate(offsets) if first < end and after > start]
    found = f"{name} from {start} to {end}: {text[start:end][:60]!r}"
    if not inside:
        return "data.span", "a span covers only white space", found, ROW_FIX
    first, after = offsets[inside[0]][0], offsets[inside[-1]][1]
    if (first, after) == (start, end):
        return name, inside[0], inside[-1] + 1
    if text[start:end].strip() != text[first:after]:
        finer = {"whitespace": " or task.words=punctuation;", "punctuation": " or task.words=characters;"}.get(words, "")
        fix = f"from {first} to {after} it covers whole words: {text[first:after][:40]!r};{finer} data.on_bad_row=skip leaves the row out"
        return "data.span", "a span starts or ends inside a word", found, fix
    return "data.span", "a span begins or ends with white space", found, f"from {first} to {after}"
