"""Questions about small contexts in words that the tiny models know, some of them without an answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_models import BAD, GOOD

THINGS = ["film", "story", "day", "town", "friends"]


def questions(num_rows: int = 40, seed: int = 0, clauses: int = 3, every_answered: bool = False) -> list[dict[str, Any]]:
    """Rows as `datasets` has SQuAD's: two questions a context, one in four without an answer; each context says of several things how
    they are, each question names one of them."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < num_rows:
        things = draw.sample(THINGS, 4)
        said = [
            (draw.choice(things[:3]), f"{draw.choice(GOOD + BAD)} and {draw.choice(GOOD + BAD)}") for _ in range(draw.randint(2, clauses))
        ]
        # a word that no other context has
        context = "".join(f"the {thing} was {how} again " for thing, how in said) + "xy" + "".join(chr(97 + int(d)) for d in str(len(rows)))
        for number in range(2):
            thing, how = said[number]
            is_impossible = not every_answered and draw.random() < 0.25
            answers = [] if is_impossible else [(how, context.index(f"the {thing} was {how}") + len(f"the {thing} was "))]
            rows.append(
                {
                    "id": f"q{len(rows)}",
                    "question": f"{'a' if number else 'the'} {things[3] if is_impossible else thing} was",
                    "context": context,
                    "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
                }
            )
    return rows[:num_rows]


def write_flat(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One question a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_squad(path: Path, rows: list[dict[str, Any]], indent: int | None = 1) -> Path:
    """The same as SQuAD 2's document, the questions of a context before it."""
    contexts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        answers = [{"text": text, "answer_start": start} for text, start in zip(*row["answers"].values(), strict=True)]
        asked = {"question": row["question"], "id": row["id"], "answers": answers, "is_impossible": not answers}
        contexts.setdefault(row["context"], []).append(asked)
    paragraphs = [{"qas": qas, "context": context} for context, qas in contexts.items()]
    document = {"version": "v2.0", "data": [{"title": "things", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    return path
