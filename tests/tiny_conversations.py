"""Tiny models that know a chat template, and conversations in words that they know."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny_models import BAD, GOOD, PLAIN, bpe_tokenizer, tiny_decoder
from tunesmith.tasks.chat.presets import CHATML

Messages = list[dict[str, str]]
MAX_TOKENS = 128


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with ChatML's template and tokens."""
    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.add_special_tokens({"extra_special_tokens": list(CHATML.tokens)})
    tokenizer.chat_template = CHATML.template
    tokenizer.model_max_length = MAX_TOKENS
    return tokenizer


def save_chat_model(folder: Path, kind: str = "llama", **config: Any) -> Path:
    """A random language model of that kind that reads 128 tokens, and its tokenizer with a chat template, under `folder`."""
    tokenizer = chat_tokenizer()
    tiny_decoder(kind, len(tokenizer), max_position_embeddings=MAX_TOKENS, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversations(num_rows: int = 40, seed: int = 0) -> list[Messages]:
    """Different conversations of one or two questions; an answer begins with the question's word of praise or blame."""
    draw = random.Random(seed)
    rows = []
    for index in range(num_rows):
        messages: Messages = []
        for turn in range(1 + index % 2):
            word = draw.choice(GOOD + BAD)
            question = f"{PLAIN[index % 15]} {PLAIN[index // 15]} {draw.choice(PLAIN)} was {word}{' again' * turn}"
            answer = " ".join([word, *(draw.choice(PLAIN) for _ in range(draw.randint(0, 5)))])
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(messages)
    return rows


def write_conversations(path: Path, num_rows: int = 40, seed: int = 0) -> Path:
    """`conversations`, one a line under `messages`."""
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations(num_rows, seed)))
    return path


def write_prose(path: Path, num_lines: int = 60, seed: int = 0) -> Path:
    """Running text: lines of known words, some of them blank."""
    draw = random.Random(seed)
    lines = [
        " ".join(draw.choice(PLAIN + GOOD + BAD) for _ in range(draw.randint(2, 12))) if number % 5 else "" for number in range(num_lines)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
