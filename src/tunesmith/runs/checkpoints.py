"""Checkpoints that are known to be whole: each is sealed by a manifest written after all its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def seal_checkpoint(folder: Path) -> None:
    """Writes the manifest: SHA-256 of every file of the checkpoint."""
    digests = {
        path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST
    }
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(digests, indent=2))
    partial.replace(folder / MANIFEST)


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there and has its SHA-256."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return bool(digests) and all(_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint-N under `folder`, or None, and newer ones that are not whole."""
    damaged: list[Path] = []
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if is_whole(checkpoint):
            return checkpoint, damaged
        damaged.append(checkpoint)
    return None, damaged


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
