"""Writes the chat demo's data: conversations of the chatterbot corpus on topics that are asked about, one a line.

    python examples/chatterbot_chat.py demo/short_answers.jsonl

Each distinct conversation is written once; what is left of one after its last whole answer is left out.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import yaml

TOPICS = ("ai", "literature", "money", "movies", "psychology", "science", "sports", "trivia")


def main(out: str) -> None:
    """Reads the corpus that is installed, and writes `out`."""
    rows: dict[str, None] = {}
    for topic in TOPICS:
        corpus = yaml.safe_load((files("chatterbot_corpus") / "data" / "english" / f"{topic}.yml").read_text(encoding="utf-8"))
        for turns in corpus["conversations"]:
            whole = [str(turn).strip() for turn in turns[: len(turns) // 2 * 2]]
            roles = ("user", "assistant") * (len(whole) // 2)
            messages = [{"role": role, "content": turn} for role, turn in zip(roles, whole, strict=True)]
            if all(whole):
                rows[json.dumps({"messages": messages}, ensure_ascii=False)] = None
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    print(f"wrote {len(rows)} conversations on {len(TOPICS)} topics to {out}")


if __name__ == "__main__":
    main(sys.argv[1])
