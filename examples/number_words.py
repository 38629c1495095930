"""Writes numbers and their English words as pairs, digits and words apart: python examples/number_words.py demo/numbers.jsonl [rows]"""

import json
import random
import sys
from pathlib import Path

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen""".split()  # noqa: SIM905 one word a line would be a page
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def words(number: int) -> str:
    """A number below a million in English."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = f" {words(number % size)}" if number % size else ""
    return f"{words(number // size)} {name}{rest}"


if __name__ == "__main__":
    path, num_rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = random.Random(0).sample(range(10_000), num_rows)
    path.write_text(
        "".join(json.dumps({"source": " ".join(str(number)), "target": words(number)}) + "\n" for number in numbers), encoding="utf-8"
    )
