"""Keeps secrets out of what a run writes down."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"TOKEN$|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?$", re.IGNORECASE)
"""Environment variables whose values are secret."""
SHAPES = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b")
"""What tokens of hubs and clouds look like."""
SHORTEST = 12
HIDDEN = "(hidden)"


def redact(text: str) -> str:
    """The text without values of secret environment variables, and without what looks like a token."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and NAMES.search(name) and value in text:
            text = text.replace(value, HIDDEN)
    return SHAPES.sub(HIDDEN, text)
