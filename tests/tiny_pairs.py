"""Rows of texts that belong together, with negatives, scores or labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_models import BAD, GOOD, PLAIN


def rows(kind: str, num_rows: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Different texts of 2 to 12 words; those that belong together share the first two."""
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    words = [*GOOD, *BAD, *PLAIN]
    for index in range(num_rows):
        topic = [words[index % 27], words[index // 27 % 27]]

        def text(start: list[str], tail: str) -> str:
            return " ".join([*start, *(draw.choice(PLAIN) for _ in range(draw.randint(0, 9))), tail])

        score = draw.randint(0, 50) / 10
        label = int(score > 2.5)
        anchor, other = text(topic, "day"), text(topic if label else topic[::-1], "town")
        found.append(
            {
                "pairs": {"anchor": anchor, "positive": text(topic, "again")},
                "triplets": {"anchor": anchor, "positive": text(topic, "again"), "negative": text(topic[::-1], "film")},
                "scored_pairs": {"sentence1": anchor, "sentence2": other, "score": score},
                "labelled_pairs": {"sentence1": anchor, "sentence2": other, "label": label},
            }[kind]
        )
    return found


def write_pairs(path: Path, kind: str, num_rows: int = 60, seed: int = 0) -> Path:
    """The same as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, num_rows, seed)), encoding="utf-8")
    return path
