"""Tagged sentences in words that the tiny models know, with entities of one to three words."""

from __future__ import annotations

import random
from pathlib import Path

from tiny_models import BAD, GOOD, PLAIN

Sentence = tuple[list[str], list[str]]


def sentences(num_rows: int = 40, seed: int = 0, longest: int = 9) -> list[Sentence]:
    """Different sentences and their IOB2 tags: words of praise are of type `praise`, words of blame of type `blame`."""
    draw = random.Random(seed)
    rows = []
    for index in range(num_rows):
        words, tags = [PLAIN[index % 15], PLAIN[index // 15 % 15]], ["O", "O"]
        while len(words) < draw.randint(4, longest):
            kind, known = draw.choice((("praise", GOOD), ("blame", BAD)))
            length = draw.randint(1, 3)
            words += [*(draw.choice(known) for _ in range(length)), *(draw.choice(PLAIN) for _ in range(draw.randint(1, 2)))]
            tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
            tags += ["O"] * (len(words) - len(tags))
        # a word of several tokens, which no other sentence has
        words.append("xy" + "".join(chr(ord("a") + int(digit)) for digit in str(index)))
        tags.append("O")
        rows.append((words, tags))
    return rows


def write_conll(path: Path, num_rows: int = 40, seed: int = 0, longest: int = 9) -> Path:
    """`sentences`, one word and its tag a line."""
    found = sentences(num_rows, seed, longest)
    path.write_text("\n".join("".join(f"{word}\t{tag}\n" for word, tag in zip(*row, strict=True)) for row in found))
    return path
