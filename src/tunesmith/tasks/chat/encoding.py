"""Conversations as the model reads them: tokens, what is learnt of them, and what becomes of one that is too long."""

from __future__ import annotations

import bisect
import json
from typing import TYPE_CHECKING, Any

from tunesmith.data.collate import IGNORED
from tunesmith.errors import InputError
from tunesmith.registry import Fault
from tunesmith.tasks.chat.section import ChatSpec
from tunesmith.tasks.chat.template import Conversation, Messages, UnfitError, encode_conversation, encode_conversations, render, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(section: ChatSpec, batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list[Any]]:
    """input_ids, labels (not shifted; IGNORED where nothing is learnt), full_length (tokens before any cut) and fault."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "full_length": [], "fault": []}
    conversations = [json.loads(text) for text in batch["messages"]]
    for messages, encoded in zip(conversations, encode_conversations(tokenizer, conversations, section.train_on), strict=True):
        full_length = len(encoded.ids) if isinstance(encoded, Conversation) else 0
        if full_length > max_length:
            encoded = _fit(section, messages, tokenizer, max_length, full_length)
        fitting = encoded if isinstance(encoded, Conversation) else Conversation([], [], [])
        # No token stands before the first, from which it could be learnt.
        labels = [token if trained else IGNORED for token, trained in zip(fitting.ids, [False, *fitting.trained[1:]], strict=False)]
        if isinstance(encoded, Conversation) and all(label == IGNORED for label in labels):
            encoded = ("data.conversation", "the conversation has no token to learn", f"{len(labels)} tokens", "add an answer")
            fitting, labels = Conversation([], [], []), []
        columns["input_ids"].append(fitting.ids)
        columns["labels"].append(labels)
        columns["full_length"].append(full_length)
        columns["fault"].append(None if isinstance(encoded, Conversation) else encoded)
    return columns


def _fit(
    section: ChatSpec, messages: Messages, tokenizer: PreTrainedTokenizerBase, max_length: int, full_length: int
) -> Conversation | Fault:
    found = f"{full_length} tokens, max_length is {max_length}"
    choices = "task.max_length, or task.too_long: drop_turns, truncate_prompt or skip"
    if section.too_long in ("error", "skip"):
        code = "data.too_long" if section.too_long == "error" else "data.left_out"
        return code, "the conversation is longer than max_length", found, choices
    try:
        shortened = (_drop_turns if section.too_long == "drop_turns" else _truncate_prompt)(messages, tokenizer, max_length)
    except UnfitError as error:
        return error.fault
    if shortened is None:
        tried = (
            "even the last question and its answer" if section.too_long == "drop_turns" else "what is not an answer cannot be cut enough"
        )
        return "data.too_long", f"the conversation is longer than max_length, {tried}", found, choices
    return encode_conversation(tokenizer, shortened, section.train_on)


def _num_tokens(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> int:
    return len(tokenize(tokenizer, [render(tokenizer, messages)])["input_ids"][0])


def _drop_turns(messages: Messages, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Messages | None:
    """Without the fewest oldest questions and what answers them; the system prompt stays."""
    roles = [message["role"] for message in messages]
    last_answer = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
    questions = [index for index, role in enumerate(roles) if role == "user" and index < last_answer]
    kept = [[*messages[: questions[0]], *messages[question:]] for question in questions]
    fewest = bisect.bisect_left(kept, True, key=lambda rest: _num_tokens(tokenizer, rest) <= max_length)
    return kept[fewest] if fewest < len(kept) else None


def _truncate_prompt(messages: Messages, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Messages | None:
    """With its longest message that is not an answer cut at the start, and the next when that is as short; each keeps a token."""
    messages = [dict(message) for message in messages]
    others = [message for message in messages if message["role"] != "assistant"]
    while (excess := _num_tokens(tokenizer, messages) - max_length) > 0:
        offsets = [
            tokenizer(message["content"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"] for message in others
        ]
        longest = max(range(len(others)), key=lambda index: len(offsets[index]), default=-1)
        if longest < 0 or len(offsets[longest]) < 2:
            return None
        start, _ = offsets[longest][min(excess, len(offsets[longest]) - 1)]
        # A character of several tokens starts where its first token does: without it nothing would be cut.
        others[longest]["content"] = others[longest]["content"][max(start, 1) :]
    return messages


def prompt(section: ChatSpec, batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], str | None]]:
    """Tokens up to the last answer, or of the whole conversation where a question stands last; and that answer if there is one."""
    texts, references = [], []
    for row in batch["messages"]:
        messages = json.loads(row)
        answer = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
        try:
            texts.append(render(tokenizer, messages, add_generation_prompt=True))
        except UnfitError as error:
            code, problem, found, fix = error.fault
            raise InputError(code, problem, found=found, fix=fix) from None
        references.append(answer)
    return list(zip(tokenize(tokenizer, texts)["input_ids"], references, strict=True))
