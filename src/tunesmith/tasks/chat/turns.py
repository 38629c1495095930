"""Turns of a conversation: who says what in one message, and the order in which turns may follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tunesmith.data.cells import name_kind
from tunesmith.data.text import shorten
from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import Fault

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Names of roles as data files write them."""
SKIP = "data.on_bad_row=skip leaves the row out"
TEMPLATE = '{"role": "user", "content": "..."}'
_TOOLS = "tool calls are not supported"
_TOOLS_FIX = f"write the call into content, as text that the model is to learn; or {SKIP}"
_THINKING = "thinking that stands beside the content would not be learnt"
_THINKING_FIX = "put it into content the way the model writes it, e.g. <think>...</think>; or remove the key"
_MEDIA = "only text can be learnt"
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
REFUSED_KEYS = {
    **dict.fromkeys(("tool_calls", "tool_call_id", "function_call"), (_TOOLS, _TOOLS_FIX)),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), (_THINKING, _THINKING_FIX)),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), (_MEDIA, SKIP)),
    "name": ("names of speakers are not supported", "put the name into content; or remove the key"),
}
"""Keys of a message that mean something for training, and why they cannot be used; all others are metadata and are not read."""
REFUSED_COLUMNS = {
    **dict.fromkeys(("tools", "functions"), (_TOOLS, _TOOLS_FIX)),
    **dict.fromkeys(("image", "images", "audios", "videos"), (_MEDIA, SKIP)),
}
"""Columns beside a list of messages that it cannot be understood without."""
WEIGHT_KEYS = ("weight", "train")


class Turn(NamedTuple):
    """What one side says."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


def unusable(problem: str, found: str, fix: str = SKIP) -> InputError:
    """What says that a conversation cannot be used; `fault_of` makes it a row's fault."""
    return InputError("data.conversation", problem, found=found, fix=fix)


def fault_of(error: InputError) -> Fault:
    """The first problem of an error, as what is wrong with a row."""
    problem = error.problems[0]
    return problem.code, problem.problem, problem.found, problem.fix


def left_out(leave_out: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The `key: value` for which a row or message is to be left out; empty when it is not."""
    for key, wanted in leave_out.items():
        value = values.get(key)
        if isinstance(value, str) and not isinstance(wanted, str):
            is_meant = value.strip().lower() == json.dumps(wanted)  # a cell of a CSV file
        else:
            is_meant = value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
        if is_meant:
            return f"{key}: {json.dumps(wanted, ensure_ascii=False)}"
    return ""


def left_out_fault(place: str, reason: str, more: int = 0) -> Fault:
    """The fault that counts what `task.leave_out` leaves out, and how many messages go with it."""
    found = f"{place}, with {more} that follow{'s' * (more == 1)} it" if more else place
    return "data.left_out", f"task.leave_out, {reason}", found, "no error: it is counted and listed"


def read_message(message: Any, place: str) -> Turn:
    """The turn that a message holds; `place` says which of the row it is. Raises InputError when it cannot be used."""
    if not isinstance(message, dict):
        shown = shorten(message) if isinstance(message, str) else name_kind(message)
        raise unusable("a message is not an object", f"{place}: {shown}", f"write it as {TEMPLATE}")
    role = _read_role(message, place)
    refuse(message, REFUSED_KEYS, f"{place} ({role}), key ")
    is_learnt = role == "assistant"
    for key in WEIGHT_KEYS:
        if message.get(key) not in (None, is_learnt):
            fix = f"remove the key {key}: task.train_on says which turns are learnt; or {SKIP}"
            raise unusable("messages cannot be weighted one by one", f"{place} ({role}), key {key}: {message[key]!r}", fix)
    return Turn(role, read_content(_only(message, CONTENT_KEYS, "content", place), f"{place} ({role})"))


def refuse(values: Mapping[str, Any], refused: Mapping[str, tuple[str, str]], place: str) -> None:
    """Raises InputError for the first key that is refused and holds something."""
    for key, (problem, fix) in refused.items():
        if values.get(key) and values[key] not in ("[]", "{}", "null"):
            raise unusable(problem, f"{place}{key}: {shorten(str(values[key]))}", fix)


def _only(message: Mapping[str, Any], keys: Sequence[str], what: str, place: str) -> Any:
    """The value of the one key of `keys` that the message has; columnar files write null for a key that is not there."""
    present = [key for key in keys if key in message]
    filled = [key for key in present if message[key] is not None]
    if len(filled) > 1:
        raise unusable(f"a message says its {what} twice", f"{place}: {' and '.join(filled)}", "keep one of the keys")
    if not present:
        fix = f'write it as {TEMPLATE}, or as {{"from": "human", "value": "..."}}'
        raise unusable(f"a message has no {what}", f"{place}: keys {', '.join(message) or 'none'}", fix)
    return message[filled[0]] if filled else None


def _read_role(message: Mapping[str, Any], place: str) -> str:
    said = _only(message, ROLE_KEYS, "role", place)
    name = said.strip().lower() if isinstance(said, str) else ""
    if name in TOOL_ROLES:
        raise unusable(_TOOLS, f"{place}: role {said}", _TOOLS_FIX)
    if name not in SPEAKERS:
        shown = shorten(said) if isinstance(said, str) else name_kind(said)
        raise unusable("a message has an unknown role", f"{place}: role {shown}", did_you_mean(name, ("user", "assistant", "system")))
    return SPEAKERS[name]


def read_content(content: Any, place: str) -> str:
    """The text of a turn, as it is; parts that are all text are joined. Raises InputError when there is none."""
    if isinstance(content, list) and content:
        content = "".join(_read_part(part, f"{place}, part {number}") for number, part in enumerate(content, 1))
    if content is None or content == [] or (isinstance(content, str) and not content.strip()):
        shown = "null" if content is None else repr(content)[:60]
        raise unusable("a turn is empty", f"{place}: {shown}", f"write what is said, or remove the turn; {SKIP}")
    if not isinstance(content, str):
        raise unusable("what is said is not text", f"{place}: {name_kind(content)}, {shorten(str(content))}", 'write it as a string: "..."')
    return content


def _read_part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if kind in ("text", "input_text", "output_text") else part
    if not isinstance(text, str):
        shown = f"type {kind}" if kind else name_kind(part)
        raise unusable(_MEDIA, f"{place}: {shown}", f"write content as one string; or {SKIP}")
    return text


def check_order(turns: Sequence[Turn], needs_answer: bool) -> None:
    """Raises InputError unless user and assistant take turns, after at most one system message, and the assistant has the last word."""
    before = ""
    for number, (role, content) in enumerate(turns, 1):
        found = f"turn {number}: {shorten(content)}"
        if role == "system" and number > 1:
            problem = "the conversation has two system messages" if before == "system" else "a system message stands among the turns"
            raise unusable(problem, found, f"a conversation may have one, as its first message: join or move them; or {SKIP}")
        if role == "assistant" and before in ("", "system"):
            raise unusable("the assistant speaks first", found, f"put the user's turn before it, or remove it; or {SKIP}")
        if role == before:
            raise unusable(f"the {role} speaks twice in a row", found, f"join the two turns into one; or {SKIP}")
        before = role
    if before in ("", "system"):
        raise unusable("the conversation has no turn", "only a system message" if turns else "nothing", f"add turns; or {SKIP}")
    if needs_answer and before == "user":
        has_answer = any(turn.role == "assistant" for turn in turns)
        problem = "the user has the last word" if has_answer else "the assistant says nothing"
        fix = "add the answer, or remove the last turn" if has_answer else "add the answer that is to be learnt"
        raise unusable(problem, f"turn {len(turns)}: {shorten(turns[-1].content)}", f"{fix}; or {SKIP}")


def cut_to_answer(turns: Sequence[Turn], needs_answer: bool) -> list[Turn]:
    """The turns up to the last answer, when one is needed: nothing would be learnt from what follows."""
    last = max((number for number, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
    return list(turns[:last] if needs_answer else turns)
