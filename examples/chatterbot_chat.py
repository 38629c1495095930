"""Writes the chat demo's data: questions to technical support of the chatterbot corpus and their answers, one conversation a line.

python examples/chatterbot_chat.py demo/tech_support.jsonl
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import yaml


def main(out: str) -> None:
    """Reads the corpus that is installed, and writes `out`."""
    corpus = yaml.safe_load((files("chatterbot_corpus") / "data" / "english" / "tech_support.yml").read_text(encoding="utf-8"))
    lines = [
        json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}, ensure_ascii=False)
        for question, answer in corpus["conversations"]
    ]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {len(lines)} conversations to {out}")


if __name__ == "__main__":
    main(sys.argv[1])
