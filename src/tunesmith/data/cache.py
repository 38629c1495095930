"""Where tunesmith keeps what it can make again: one folder per key, complete or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 10 * 10**9
"""Of one kind; beyond it what was not used for longest is removed."""
SAFE_SECONDS = 3600
"""Who was given a folder may not have opened its files yet."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/tunesmith`, by default `~/.cache/tunesmith`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def key_of(*parts: Any) -> str:
    """SHA-256 of bytes and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def cached_folder(kind: str, key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder of this key, made if need be, and whether it was there.

    `make(folder)` fills a temporary folder that is renamed into place; a folder whose files no longer have their sizes is made anew.
    """
    folder = cache_folder() / kind / key
    if _is_complete(folder):
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder / "complete.json")
        return folder, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=folder.parent))
    try:
        make(temporary)
        sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
        (temporary / "complete.json").write_text(json.dumps(sizes))
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster, or what stands there is damaged
            if _is_complete(folder):
                return folder, True
            shutil.rmtree(folder)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(folder.parent)
    return folder, False


def _prune(parent: Path) -> None:
    """Removes folders, the one not used for longest first, until those left hold no more than MOST_BYTES."""
    found: list[tuple[float, int, Path]] = []
    for marker in parent.glob("[!.]*/complete.json"):
        with contextlib.suppress(OSError):  # another process may be removing it
            found.append((marker.stat().st_mtime, sum(file.stat().st_size for file in marker.parent.iterdir()), marker.parent))
    total = sum(size for _, size, _ in found)
    for used, size, folder in sorted(found):
        if total <= MOST_BYTES or time.time() - used < SAFE_SECONDS:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "complete.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
