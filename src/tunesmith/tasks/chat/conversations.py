"""Conversations in the shapes that data files write them, read into one: user and assistant by turns, a system message before them.

What is said is kept to the letter; an input follows its instruction after a blank line. A list of messages may stand as JSON text in
the cell of a table. Metadata of a message or row is not read, but what would change the training is refused (see `turns.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

from tunesmith.data.cells import is_missing, name_kind
from tunesmith.data.columns import assign_columns, describe_column
from tunesmith.data.json_document import check_surrogates, unique_keys
from tunesmith.data.text import shorten
from tunesmith.errors import InputError
from tunesmith.registry import Fault, Role
from tunesmith.spec import Auto, DataSpec
from tunesmith.tasks.chat.section import ChatSpec
from tunesmith.tasks.chat.trees import read_tree
from tunesmith.tasks.chat.turns import (
    REFUSED_COLUMNS,
    ROLE_KEYS,
    SKIP,
    TEMPLATE,
    Turn,
    check_order,
    cut_to_answer,
    fault_of,
    left_out,
    left_out_fault,
    read_content,
    read_message,
    refuse,
    unusable,
)

ROLES = (
    Role("messages", "name", False, ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")),
    Role("instances", "name", False, ("instances",)),
    Role("prompt", "name", False, ("instruction", "prompt", "question", "query", "user", "human", "user_input")),
    Role("input", "name", False, ("input", "context")),
    Role("completion", "name", False, ("completion", "output", "response", "answer", "assistant", "reply", "ideal", "bot", "gpt")),
    Role("system", "name", False, ("system", "system_prompt", "system_message")),
    Role("history", "name", False, ("history",)),
)
SHAPES = {
    "messages": "a list of messages with role and content",
    "sharegpt": "a list of messages with from and value",
    "turns": "a list of texts that user and assistant say by turns",
    "instances": "an instruction with instances of input and output",
    "tree": "a tree of messages and their replies",
    "alpaca": "an instruction, perhaps with an input, and its output",
    "question_answer": "a question and its answer",
    "prompt_completion": "a prompt and its completion",
}
PROMPT_SHAPES = ("alpaca", "question_answer", "prompt_completion")
UNMISTAKABLE = {"instruction", "prompt", "user", "human", "completion", "response", "assistant"}
"""Column names of a conversation; a question or an input with its answer may also be a text with its class."""
OTHER_TASKS = {"label", "labels", "chosen", "rejected"}
"""Columns beside texts that say: something else is learnt from them."""
RECOGNISE_ROWS = 200
NO_SHAPE_FIX = "name them: data.columns={prompt: ..., completion: ...}, or data.columns={messages: ...} for lists of messages"
NO_PROMPT_FIX = f"write what is asked in the prompt's column; {NO_SHAPE_FIX}; or {SKIP}"
INSTANCES_FIX = f'write [{{"input": "...", "output": "..."}}, ...]; or {SKIP}'

Piece = list[Turn] | Fault


def read(section: ChatSpec, columns: dict[str, str], row: dict[str, Any], *, needs_answer: bool = True) -> Iterable[dict[str, Any] | Fault]:
    """The conversations of a row, each as the JSON text of its messages, and what is wrong with it or left out of it.

    Raises InputError when the columns of the data are not those of any shape, so that no row can be read.
    """
    _check_columns(columns, row, needs_answer)
    if reason := left_out(section.leave_out, row):
        yield left_out_fault("the row", reason)
        return
    cells = {role: row[column] for role, column in columns.items() if not is_missing(row.get(column))}
    try:
        system = read_content(cells["system"], "the system prompt") if "system" in cells else None
        for piece in _pieces(section, cells, row, needs_answer):
            yield piece if isinstance(piece, tuple) else _canonical(section, piece, system, needs_answer)
    except InputError as error:
        yield fault_of(error)


def _check_columns(columns: dict[str, str], row: dict[str, Any], needs_answer: bool) -> None:
    asks = columns.get("prompt", columns.get("input"))
    if "messages" in columns or (asks and ("completion" in columns or "instances" in columns or not needs_answer)):
        return
    if asks and not isinstance(row.get(asks), str):
        return  # a tree, or messages with their answer
    shown = ", ".join(f"{name} ({name_kind(value)})" for name, value in row.items())
    problem = f"which column answers {asks} cannot be seen" if asks else "which columns hold the conversations cannot be seen"
    fix = NO_SHAPE_FIX + ("; data.header=true if the first line names the columns" if "column_1" in row else "")
    raise InputError("data.ambiguous_columns", problem, where="data.columns", found=f"columns {shown}"[:300], fix=fix)


def _canonical(section: ChatSpec, turns: list[Turn], system: str | None, needs_answer: bool) -> dict[str, Any] | Fault:
    own = turns[0].content if turns and turns[0].role == "system" else None
    if own is not None and system not in (None, own):
        found = f"{shorten(own)} as a message, {shorten(str(system))} in its column"
        return fault_of(unusable("the conversation has two system prompts", found, f"keep one of them; or {SKIP}"))
    if own is None:
        default = None if section.system == "none" else section.system
        first = default if system is None else system
        turns = turns if first is None else [Turn("system", first), *turns]
    try:
        check_order(turns, needs_answer)
    except InputError as error:
        return fault_of(error)
    return {"messages": json.dumps([turn._asdict() for turn in turns], ensure_ascii=False)}


def _pieces(section: ChatSpec, cells: dict[str, Any], row: dict[str, Any], needs_answer: bool) -> Iterator[Piece]:
    """The conversations of the shape that the cells have; `cells` holds none that is empty."""
    if "prompt" not in cells and "instances" not in cells and "input" in cells:
        cells = {"prompt" if role == "input" else role: cell for role, cell in cells.items()}
    prompt = cells.get("prompt")
    if "messages" in cells:
        messages = _message_list(cells["messages"])
        repeated = {role for role in ("prompt", "completion") if role in cells and _stands_in(messages, cells[role])}
        _check_alone(cells, {"messages", *repeated})
        refuse(row, REFUSED_COLUMNS, "column ")
        yield from _read_list(messages, section.leave_out, needs_answer)
    elif "instances" in cells:
        _check_alone(cells, {"prompt", "instances", "history"})
        yield from _read_instances(section, cells, needs_answer)
    elif isinstance(prompt, dict) and ("replies" in prompt or "text" in prompt):
        _check_alone(cells, {"prompt"})
        yield from read_tree(prompt, section.paths, section.leave_out, needs_answer)
    elif _is_list(prompt) or (prompt is not None and _is_list(cells.get("completion"))):
        _check_alone(cells, {"prompt", "completion"})
        messages = [*_as_list(prompt, "user"), *_as_list(cells.get("completion"), "assistant")]
        yield from _read_list(messages, section.leave_out, needs_answer)
    else:
        yield _prompted(cells, needs_answer)


def _is_list(cell: Any) -> bool:
    """Whether a prompt or a completion is a list of messages, not a text or its parts."""
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict) and not cell[0].keys().isdisjoint(ROLE_KEYS)


def _as_list(cell: Any, role: str) -> list[Any]:
    if cell is None:
        return []
    return list(cell) if _is_list(cell) else [{"role": role, "content": cell}]


def _check_alone(cells: dict[str, Any], used: set[str]) -> None:
    """Raises when the row holds something that belongs to another shape, and would be dropped."""
    for role in [role for role in cells if role not in {*used, "system"}]:
        shape = next(name for name in ("messages", "instances", "prompt") if name in used)
        found = f"{shape}, and beside it {role}: {shorten(str(cells[role]))}"
        fix = f"data.columns={{{shape}: ...}} names what counts; or {SKIP}"
        raise unusable("the row holds conversations in two shapes", found, fix)


def _stands_in(messages: list[Any], text: Any) -> bool:
    return any(text in message.values() for message in messages if isinstance(message, dict))


def _message_list(cell: Any) -> list[Any]:
    """The messages of a cell, which in a table may be their JSON text."""
    messages = cell
    if isinstance(cell, str):
        try:
            messages = json.loads(cell, object_pairs_hook=unique_keys)
            check_surrogates(cell, messages)
        except (ValueError, RecursionError) as error:
            found = f"{error}: {shorten(cell)}"
            if cell.lstrip().startswith(("[{'", "array(", "[array(")):
                fix = "the table was written with Python's lists: write it as jsonl or Parquet, or the cells with json.dumps"
            elif cell.lstrip().startswith(("[", "{")):
                fix = f"mend the JSON: [{TEMPLATE}, ...]; or {SKIP}"
            else:
                fix = f"write [{TEMPLATE}, ...]; if it is a prompt, {NO_SHAPE_FIX}"
            raise unusable("the messages are text, and not JSON", found, fix) from None
    if not isinstance(messages, list):
        raise unusable("the messages are not a list", f"{name_kind(messages)}: {shorten(str(messages))}", f"write [{TEMPLATE}, ...]")
    if not messages:
        raise unusable("the list of messages is empty", "[]", f"add the messages; or {SKIP}")
    return messages


def _read_list(messages: list[Any], leave_out: Mapping[str, Any], needs_answer: bool) -> Iterator[Piece]:
    """The conversation of a list, up to the first message that is left out."""
    if all(isinstance(message, str) for message in messages):
        roles = cycle(("user", "assistant"))
        yield [
            Turn(role, read_content(text, f"turn {number}")) for number, (role, text) in enumerate(zip(roles, messages, strict=False), 1)
        ]
        return
    turns: list[Turn] = []
    for number, message in enumerate(messages, 1):
        if isinstance(message, dict) and (reason := left_out(leave_out, message)):
            yield left_out_fault(f"message {number}", reason, len(messages) - number)
            turns = cut_to_answer(turns, needs_answer)
            if not any(turn.role != "system" for turn in turns):
                return
            break
        turns.append(read_message(message, f"message {number}"))
    yield turns


def _read_instances(section: ChatSpec, cells: dict[str, Any], needs_answer: bool) -> Iterator[Piece]:
    """One conversation for each instance; one that cannot be used does not keep back the others."""
    instances = cells["instances"]
    if not isinstance(instances, list):
        raise unusable("the instances are not a list", f"{name_kind(instances)}: {shorten(str(instances))}", INSTANCES_FIX)
    if not instances:
        raise unusable("the list of instances is empty", "[]", f"add an instance; or {SKIP}")
    for number, instance in enumerate(instances, 1):
        try:
            if not isinstance(instance, dict):
                raise unusable("an instance is not an object", f"instance {number}: {name_kind(instance)}", INSTANCES_FIX)
            if reason := left_out(section.leave_out, instance):
                yield left_out_fault(f"instance {number}", reason)
                continue
            own = {"input": instance.get("input"), "completion": instance.get("output")}
            yield _prompted({**cells, **own}, needs_answer, f"instance {number}, ")
        except InputError as error:
            yield fault_of(error)


def _prompted(cells: Mapping[str, Any], needs_answer: bool, place: str = "") -> list[Turn]:
    """The conversation of a prompt and its completion, after earlier turns if there are any."""
    missing = {role for role in ("prompt", "input", "completion") if is_missing(cells.get(role))}
    if "prompt" in missing:
        filled = ", ".join(role for role, cell in cells.items() if not is_missing(cell))
        raise unusable("the row has no prompt", f"{place}only {filled}" if filled else "no column of a conversation", NO_PROMPT_FIX)
    prompt = read_content(cells["prompt"], f"{place}the prompt")
    if "input" not in missing:
        # as in Alpaca's prompt, without its preamble and headings
        prompt = f"{prompt}\n\n{read_content(cells['input'], f'{place}the input')}"
    turns = [*_history(cells.get("history")), Turn("user", prompt)]
    if "completion" not in missing:
        return [*turns, Turn("assistant", read_content(cells["completion"], f"{place}the completion"))]
    if needs_answer:
        fix = f"add the answer that is to be learnt; or {SKIP}"
        raise unusable("the prompt has no answer", f"{place}the prompt {shorten(prompt)}", fix)
    return turns


def _history(cell: Any) -> list[Turn]:
    """Earlier turns, as pairs of what the user and the assistant said."""
    if is_missing(cell):
        return []
    if not isinstance(cell, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in cell):
        raise unusable("the history is not a list of pairs", shorten(str(cell)), f"write [[question, answer], ...]; or {SKIP}")
    roles = ("user", "assistant")
    return [Turn(role, read_content(text, f"the history, {role}")) for pair in cell for role, text in zip(roles, pair, strict=True)]


def shape_of(names: list[str], sample: list[dict[str, Any]], columns: dict[str, str] | Auto = "auto") -> str:
    """Which of SHAPES the data has, `columns` being `data.columns` of the spec; empty when it has none."""
    return _shape_and_columns(names, sample, columns)[0]


def recognise(names: list[str], sample: list[dict[str, Any]]) -> str | None:
    """Why the data looks like conversations, or None."""
    shape, columns = _shape_and_columns(names, sample[:RECOGNISE_ROWS], "auto")
    if shape in PROMPT_SHAPES:
        named = {columns[role].lower() for role in ("prompt", "completion") if role in columns}
        answers = [row.get(columns["completion"]) for row in sample] if "completion" in columns else []
        is_text = bool(named & UNMISTAKABLE) or describe_column("answers", answers).kind == "text"
        if "completion" not in columns or not is_text:
            return None
    if shape in (*PROMPT_SHAPES, "turns") and {name.lower() for name in names} & OTHER_TASKS:
        return None
    return f"{SHAPES[shape]} (columns {', '.join(columns.values())})" if shape else None


def _shape_and_columns(names: list[str], sample: list[dict[str, Any]], given: dict[str, str] | Auto) -> tuple[str, dict[str, str]]:
    """The shape, empty when there is none, and the columns that it is read from by their roles."""
    columns, _ = assign_columns(names, sample, DataSpec(train="sample", columns=given), ROLES)
    first = {role: next((row[name] for row in sample if not is_missing(row.get(name))), None) for role, name in columns.items()}
    if shape := _list_shape(first.get("messages")):
        used = ["messages"]
    elif "instances" in columns and "prompt" in columns:
        shape, used = "instances", ["prompt", "instances"]
    elif isinstance(first.get("prompt"), dict):
        shape, used = "tree", ["prompt"]
    elif "prompt" in columns or "input" in columns:
        asks = columns.get("prompt", "").lower()
        is_alpaca = asks == "instruction" or {"prompt", "input"} <= columns.keys()
        shape = "alpaca" if is_alpaca else "question_answer" if asks == "question" else "prompt_completion"
        columns = columns if asks else {**columns, "prompt": columns.pop("input")}
        used = ["prompt", "input", "completion", "history"]
    else:
        return "", {}
    return shape, {role: columns[role] for role in (*used, "system") if role in columns}


def _list_shape(cell: Any) -> str:
    """The shape that a first cell of messages has."""
    try:
        message = _message_list(cell)[0]
    except InputError:
        return ""
    if isinstance(message, str):
        return "turns"
    return ("sharegpt" if "from" in message else "messages") if isinstance(message, dict) else ""
