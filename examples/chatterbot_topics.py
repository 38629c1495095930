"""Writes the demo's data: what is said under each topic of the chatterbot corpus, one JSON object a line.

    python examples/chatterbot_topics.py demo/topics.jsonl

Each distinct utterance is written once for each topic it stands under; the few that stand under two topics are left in, for
tunesmith to find.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import yaml

TOPICS = ("ai", "coding", "emotion", "food", "literature", "money", "movies", "psychology", "science", "sports", "tech_support", "trivia")


def main(out: str) -> None:
    """Reads the corpus that is installed, and writes `out`."""
    rows: dict[tuple[str, str], None] = {}
    for topic in TOPICS:
        corpus = yaml.safe_load((files("chatterbot_corpus") / "data" / "english" / f"{topic}.yml").read_text(encoding="utf-8"))
        for conversation in corpus["conversations"]:
            for utterance in conversation:
                rows[str(utterance).strip(), topic] = None
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "topic": topic}, ensure_ascii=False) for text, topic in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {len(lines)} rows of {len(TOPICS)} topics to {out}")


if __name__ == "__main__":
    main(sys.argv[1])
