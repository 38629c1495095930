"""docs/error_examples.md: what is printed for each error code, held to what the tests see. `make examples` writes it anew."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tunesmith.errors import CODES

PAGE = Path(__file__).parents[1] / "docs/error_examples.md"
HEAD = """# Errors, and what they say

Written from what the tests see printed (`make examples`), and held to it: for each code of [errors.md](errors.md) a command, the small files that it reads,
and the answer. `MODEL` and `RUN` stand for folders, `N` for numbers that differ from machine to machine.
"""
VARYING = [
    (re.compile(r"[\d,]+(?= MB)|(?<=alloc_cpu.cpp:)\d+"), "N"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "SHA-256"),
    (re.compile(r'(?<="pid": )\d+'), "N"),
    (re.compile(r'(?<="host": ")[^"]*'), "HOST"),
    (re.compile(r'(?<="since": ")[^"]*'), "TIME"),
    (re.compile(r"[^ ]*/tunesmith-traceback-\w+"), "TRACEBACK"),
]
LONGEST_FILE = 500
"""Characters of a file that is shown."""


def documented(code: str, command: str, printed: str, names: Mapping[object, str], files: Mapping[str, str] | None = None) -> None:
    """Asserts that the page shows just this for a code; `names` stand there for paths."""
    shown = [f"{name}\n\n{_block(content)}" for name, content in (files or {}).items() if _is_small(content)]
    printed = "\n".join(line for line in printed.splitlines() if line and "Loading weights:" not in line)
    text = "\n\n".join([*shown, _block(f"$ {command}\n{printed}")])
    for path, name in names.items():
        text = text.replace(f"{path}", name)
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    if "WRITE_EXAMPLES" in os.environ:
        _write(code, text)
    assert sections()[code] == text, text


def sections() -> dict[str, str]:
    """The example of each code that has one."""
    parts = PAGE.read_text(encoding="utf-8").split("\n## `")[1:] if PAGE.exists() else []
    return {part.partition("`")[0]: part.split("\n\n", 2)[2].rstrip("\n") for part in parts}


def _write(code: str, text: str) -> None:
    found = {**sections(), code: text}
    parts = [f"## `{code}`\n\n{meaning}\n\n{found[code]}\n" for code, meaning in CODES.items() if code in found]
    PAGE.write_text("\n".join([HEAD, *parts]), encoding="utf-8")


def _block(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").splitlines())


def _is_small(content: str) -> bool:
    return len(content) <= LONGEST_FILE and all(line.isprintable() for line in content.expandtabs().splitlines())
