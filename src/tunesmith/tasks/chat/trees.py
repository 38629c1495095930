"""Message trees, as Open-Assistant writes them: a prompt, the replies to it, and the replies to those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from tunesmith.data.cells import name_kind
from tunesmith.errors import InputError
from tunesmith.registry import Fault
from tunesmith.tasks.chat.turns import SKIP, Turn, fault_of, left_out, left_out_fault, read_message, unusable


def read_tree(prompt: dict[str, Any], paths: str, leave_out: Mapping[str, Any], needs_answer: bool) -> Iterator[list[Turn] | Fault]:
    """The conversations of a tree, and a fault for each message that is left out or cannot be used, with the replies under it.

    `all` is every path from the prompt to a leaf; `best` the one that takes the reply of the lowest rank at each turn, and of equal
    or no ranks the first. A path that ends on the user's turn is cut back to the answer before it, and is no path of its own where
    others go on from that answer.
    """
    kept: list[tuple[int, Turn]] = []  # (index of the message that it replies to, turn), each after all that ranks before it
    is_whole = True
    stack: list[tuple[int, Any]] = [(-1, prompt)]  # not recursive: a tree may be as deep as its file
    while stack:
        parent, message = stack.pop()
        identity = message.get("message_id") if isinstance(message, dict) else ""
        place = f"message {identity}" if identity else f"a reply to turn {parent + 1} of the tree" if kept else "the prompt"
        if isinstance(message, dict) and (reason := left_out(leave_out, message)):
            yield left_out_fault(place, reason, _num_replies(message))
            is_whole = False
            continue
        try:
            turn, replies = _read_node(message, kept[parent][1].role if kept else "", place)
        except InputError as error:
            yield fault_of(error)
            is_whole = False
            continue
        stack += [(len(kept), reply) for reply in reversed(replies)]
        kept.append((parent, turn))
    if is_whole and len(kept) == 1 and needs_answer:
        yield fault_of(unusable("the prompt of the tree has no reply", "no replies", f"add the answer that is to be learnt; or {SKIP}"))
        return
    for end in _ends(kept, paths, needs_answer):
        yield _path(kept, end)


def _read_node(message: Any, before: str, place: str) -> tuple[Turn, list[Any]]:
    """The turn of a message and its replies, the best first."""
    turn = read_message(message, place)
    if turn.role != ("assistant" if before == "user" else "user"):
        problem = f"the {turn.role} replies to the {before}" if before else f"the {turn.role} speaks first"
        raise unusable(problem, f"{place}: role {message['role']}", f"in a tree, user and assistant take turns; {SKIP}")
    replies = message.get("replies") or []
    if not isinstance(replies, list):
        raise unusable("the replies are not a list", f"{place}: {name_kind(replies)}", f'write "replies": [...]; or {SKIP}')
    return turn, sorted(replies, key=lambda reply: _rank(reply, place))


def _rank(reply: Any, place: str) -> float:
    rank = reply.get("rank") if isinstance(reply, dict) else None
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, (int, float))):
        raise unusable("a rank is not a number", f"a reply to {place}: {name_kind(rank)}", f"0 is the best, null is none; {SKIP}")
    return inf if rank is None else rank


def _num_replies(message: dict[str, Any]) -> int:
    count = 0
    stack = [message]
    while stack:
        replies = stack.pop().get("replies")
        below = [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []
        count += len(below)
        stack += below
    return count


def _ends(kept: list[tuple[int, Turn]], paths: str, needs_answer: bool) -> list[int]:
    """The messages that conversations end with."""
    answered = {parent for parent, _ in kept}
    leaves = [index for index in range(len(kept)) if index not in answered]
    if paths == "best":
        leaves = leaves[:1]  # each message stands after all that ranks before it
    if not needs_answer:
        return leaves
    cut = dict.fromkeys(index if kept[index][1].role == "assistant" else kept[index][0] for index in leaves)
    goes_on = {kept[parent][0] for parent, turn in kept if turn.role == "assistant" and parent >= 0} if paths == "all" else set()
    return [index for index in cut if index >= 0 and index not in goes_on]


def _path(kept: list[tuple[int, Turn]], end: int) -> list[Turn]:
    turns = []
    while end >= 0:
        end, turn = kept[end]
        turns.append(turn)
    return turns[::-1]
