"""What rows hold: a question, its context and the answers in it; and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from tunesmith.data.cells import canonical_text, is_missing, name_kind
from tunesmith.data.text import shorten
from tunesmith.registry import Fault, Role
from tunesmith.tasks.question_answering.section import QuestionAnsweringSpec

ROLES = (
    Role("question", "text", known_names=("question", "query")),
    Role("context", "text", known_names=("context", "passage", "paragraph", "document", "text", "article")),
    Role("answers", "label", known_names=("answers", "answer", "answer_text")),
    Role("answer_start", "name", False, ("answer_start", "answer_starts", "answer_offset")),
    Role("is_impossible", "name", False, ("is_impossible", "impossible")),
    Role("id", "name", False, ("id", "question_id", "qid", "qas_id")),
)
NO_ANSWER = "no answer"
"""The label cell of a question without one; an answer is written `START:TEXT`."""
SKIP = "correct the row, or data.on_bad_row=skip"
SHAPE_FIX = 'write {"text": ["..."], "answer_start": [0]} or [{"text": "...", "answer_start": 0}]; an empty list where there is none'
NONE_FIX = "an empty list, or is_impossible: true, where the question has none; otherwise write the answer"
TRUTH: dict[Any, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
Answer = tuple[str, Any]
"""Its text, and where in the context it begins as the row says it."""


def recognise(opened: Any) -> str | None:
    """A question and its context beside answers that say where they begin."""
    lower = {name.lower(): name for name in opened.names}
    columns = {role.name: lower[name] for role in ROLES for name in reversed(role.known_names) if name in lower}
    if not {"question", "context", "answers"} <= set(columns):
        return None
    for row in opened.sample:
        found = _answers(columns, row)
        if isinstance(found, list) and found and all(isinstance(text, str) and _number(start) is not None for text, start in found):
            return "questions and contexts, with answers that say where they begin"
    return None


def read(section: QuestionAnsweringSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterator[dict[str, Any] | Fault]:
    """Question, context and answers of a row, each answer checked against the context."""
    canonical, faults = _texts(columns, row)
    if faults:
        yield from faults
        return
    found = _answers(columns, row)
    impossible = _truth(row.get(columns.get("is_impossible", "")))
    cells: list[str] = []
    if not isinstance(found, list):
        # what says that there is no answer may leave the answers out
        faults = [] if found[0] == "data.empty_label" and impossible is True else [found]
    else:
        for answer in found:
            cell = _place(answer, canonical["context"])
            faults += [] if isinstance(cell, str) else [cell]
            cells += [cell] if isinstance(cell, str) else []
        if found and impossible is True:
            faults.append(("data.answers", "is_impossible is true, and there is an answer", repr(found[0][0])[:80], "keep one of the two"))
    if not isinstance(impossible, (bool, type(None))):
        faults.append(impossible)
    elif impossible is False and found == []:
        faults.append(("data.empty_label", "is_impossible is false, and there is no answer", "an empty list", NONE_FIX))
    asked = f"; the question is {shorten(canonical['question'])}" + (f", id {canonical['id']}" if canonical["id"] else "")
    yield from [(code, problem, shown + asked, fix) for code, problem, shown, fix in faults]
    if not faults:
        yield {**canonical, "label": list(dict.fromkeys(cells)) or [NO_ANSWER]}


def read_input(section: QuestionAnsweringSpec, columns: dict[str, str], row: dict[str, Any]) -> Iterator[dict[str, Any] | Fault]:
    """Question and context; answers are not looked at."""
    canonical, faults = _texts(columns, row)
    yield from faults or (canonical,)


def _texts(columns: dict[str, str], row: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    canonical: dict[str, Any] = {}
    faults: list[Fault] = []
    for role in ("question", "context"):
        value = row.get(columns.get(role, ""))
        canonical[role], fault = canonical_text(value)
        if fault is not None:
            code, problem, fix = fault
            faults.append((code, problem.replace("text", role), repr(value)[:100], fix))
    value = row.get(columns.get("id", ""))
    if isinstance(value, (list, dict)):
        faults.append(("data.column_type", f"the id is {name_kind(value)}", repr(value)[:80], "an id is a text or a number"))
    canonical["id"] = None if is_missing(value) else str(value)
    return canonical, faults


def _truth(value: Any) -> bool | Fault | None:
    """Whether a cell says yes; None when it says nothing."""
    if is_missing(value):
        return None
    known = TRUTH.get(value.strip().lower() if isinstance(value, str) else value) if isinstance(value, (str, int, float)) else None
    return known if known is not None else ("data.column_type", "is_impossible is neither true nor false", repr(value)[:80], SKIP)


def _number(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
        return None
    return int(value)


def _answers(columns: dict[str, str], row: dict[str, Any]) -> list[Answer] | Fault:
    """The answers of a row in whatever shape they are written, or what is wrong with them."""
    value, starts = row.get(columns["answers"]), row.get(columns.get("answer_start", ""))
    if isinstance(value, str) and is_missing(starts) and value.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)  # a cell of a table
    if is_missing(value):
        return "data.empty_label", "the row has no answers", repr(value), NONE_FIX
    if isinstance(value, dict):
        if "text" not in value:
            return "data.column_type", "answers lack text", repr(value)[:80], SHAPE_FIX
        value, starts = value["text"], value.get("answer_start")
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if not all("text" in item for item in value):
            return "data.column_type", "an answer has no text", repr(next(item for item in value if "text" not in item))[:80], SHAPE_FIX
        value, starts = [item["text"] for item in value], [item.get("answer_start") for item in value]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        return "data.column_type", f"the answers are {name_kind(value)}", repr(value)[:80], SHAPE_FIX
    listed = starts if isinstance(starts, list) else [None] * len(texts) if is_missing(starts) else [starts]
    if len(listed) != len(texts):
        found = f"{len(texts)} texts and {len(listed)} starts"
        return "data.answers", "the answers have not one start each", found, "write one answer_start for each text"
    return list(zip(texts, listed, strict=True))


def _place(answer: Answer, context: str) -> str | Fault:
    """The label cell of an answer that stands where it says, or what is wrong with it."""
    text, said = answer
    if not isinstance(text, str):
        return "data.column_type", f"an answer is {name_kind(text)}", repr(text)[:80], SHAPE_FIX
    if not text.strip():
        return "data.empty_label", "an answer is empty", repr(text), NONE_FIX
    places = _places(text, context)
    start = _number(said)
    if start is not None and start in places:
        return f"{start}:{text}"
    shown = shorten(text)
    if not places:
        return "data.span", "the answer stands nowhere in its context", shown, _nearly(text, context)
    nearest = places[0] if start is None else min(places, key=lambda place: abs(place - start))
    others = f" ({len(places)} times in all)" if len(places) > 1 else ""
    fix = f"answer_start: {nearest}, where it stands{others}"
    if start is None:
        problem = "an answer does not say where it begins" if is_missing(said) else "answer_start is no whole number"
        return "data.span", problem, f"{shown}, answer_start: {said!r}"[:160], fix
    if start < 0 or start + len(text) > len(context):
        found = f"{shown} from {start}, in a context of {len(context)} characters"
        return "data.span", "an answer lies outside of its context", found, fix + _counted(start, places, context)
    found = f"{shown} from {start}, where {shorten(context[start : start + len(text)])} stands"
    return "data.span", "an answer does not stand where it says", found, fix + _counted(start, places, context)


def _places(text: str, context: str) -> list[int]:
    return [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]


def _counted(start: int, places: Sequence[int], context: str) -> str:
    """What was counted in the place of characters, where that explains the number."""
    margin = len(context) - len(context.lstrip())
    for place in places:
        before = context[:place]
        for what, number in (
            ("bytes", len(before.encode())),
            ("UTF-16 units", len(before.encode("utf-16-le")) // 2),
            ("characters from 1", place + 1),
            ("characters of a context whose first white space was taken away", place - margin),
            ("characters of a context whose line ends are two", place + before.count("\n")),
        ):
            if number == start:
                return f"; it was counted in {what}"
    return ""


def _nearly(text: str, context: str) -> str:
    """Where something like the text stands."""
    pattern = r"\s+".join(map(re.escape, text.split()))
    match = re.search(pattern, context, re.IGNORECASE)
    found = f"at {match.start()} stands {shorten(match.group())}; " if match else ""
    return f"{found}copy the answer to the letter from the context, or data.on_bad_row=skip"


def parse_answer(cell: str) -> tuple[int, str]:
    """Start and text of an answer in a label cell."""
    start, _, text = cell.partition(":")
    return int(start), text


def references(cells: Sequence[str]) -> list[str]:
    """The texts of the answers of a row; none where the question has no answer."""
    return [] if list(cells) == [NO_ANSWER] else [parse_answer(cell)[1] for cell in cells]


def units(cell: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Whether the question of a row has an answer."""
    return ((NO_ANSWER if cell[0] == NO_ANSWER else "answer",),)


def stratify(section: QuestionAnsweringSpec, cells: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """Questions with an answer and without, which need not be on both sides of a split."""
    return [kind for cell in cells for ((kind,),) in [tuple(units(cell))]], False


def lint(section: QuestionAnsweringSpec, batch: dict[str, list[Any]]) -> Iterator[tuple[int, Fault]]:
    """(row in batch, fault) of questions without an answer where there are to be none."""
    for index, cell in enumerate(batch["label"]):
        if cell == [NO_ANSWER] and not section.version_2_with_negative:
            fix = "add such questions to the training rows, remove this one, or data.on_bad_row=skip"
            shown = shorten(batch["question"][index])
            yield index, ("data.answers", "the question has no answer, and the model is to answer each", shown, fix)
