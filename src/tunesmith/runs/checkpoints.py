"""Checkpoints that are known to be whole: written aside, sealed by a manifest of SHA-256, and renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError

MANIFEST = "manifest.json"
PARTIAL = ".partial"
DAMAGED = "damaged-"
NAME = re.compile(r"checkpoint-(\d+)")
ROOM = 1.05
"""Bytes asked for, times those that the tensors have: configurations and tokenizers come on top."""


class Checkpoints:
    """checkpoints/ of a run. What is in `partial` is being written or removed; a checkpoint-N beside it is whole.

    What takes long (files given to `write`, hashes, fsync, rename) goes on in a thread while training does: files that it reads are written
    and change no more.
    """

    def __init__(self, folder: Path, limit: int | None = None, published: Callable[[Path], None] = lambda checkpoint: None) -> None:
        self.folder, self.limit, self.published = folder, limit, published
        self.partial = folder / PARTIAL
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._pending: list[Future[None]] = []
        """In the order in which the one thread does them."""

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step stands once it is whole."""
        return self.folder / f"checkpoint-{step}"

    def all(self) -> list[Path]:
        """Every checkpoint-N, oldest first."""
        return sorted((path for path in self.folder.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=step_of)

    def require_room(self, num_bytes: int) -> None:
        """Waits for what is being sealed. Raises RunError when the disk has no room for one more checkpoint."""
        self.wait()
        free, needed = shutil.disk_usage(self.folder).free, int(num_bytes * ROOM)
        if free < needed:
            raise RunError(
                "run.no_room", "the disk has no room for a checkpoint", where=str(self.folder),
                found=f"{free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed",
                fix="free some space, then `tunesmith resume`; train.save_total_limit=1 keeps fewer checkpoints",
            )  # fmt: skip

    def write(self, action: Callable[[], None]) -> None:
        """Writes a file of the next checkpoint beside what goes on; it must not read what that changes."""
        self._pending.append(self._executor.submit(action))

    def publish(self, step: int, keep: Collection[int]) -> None:
        """Seals what was written into `partial` for a step and puts it in place, then removes the oldest beyond the limit, but none of
        `keep`."""
        written, keep = list(self._pending), frozenset(keep)
        self._pending.append(self._executor.submit(lambda: self._publish(step, keep, written)))

    def wait(self) -> None:
        """Returns when everything published is in place. Raises what went wrong."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def close(self) -> None:
        """Waits, and removes what never became a checkpoint."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self.clear()

    def clear(self) -> None:
        """Removes what an earlier process left half written or half removed."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _publish(self, step: int, keep: Collection[int], written: list[Future[None]]) -> None:
        for future in written:
            future.result()
        checkpoint = self.path(step)
        seal_checkpoint(self.partial / checkpoint.name)
        if checkpoint.exists():
            checkpoint.rename(self.partial / f"replaced-{step}")
        (self.partial / checkpoint.name).rename(checkpoint)
        sync(self.folder)
        self.published(checkpoint)
        for path in self._spare(keep):
            # Renamed first: what is half removed must not look like a damaged checkpoint.
            removed = self.partial / f"removed-{step_of(path)}"
            path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
        shutil.rmtree(self.partial / f"replaced-{step}", ignore_errors=True)

    def _spare(self, keep: Collection[int]) -> list[Path]:
        """What the limit lets go. A checkpoint is kept for the case that the newest is damaged only together with its best, without which
        no run could go on from it."""
        every = self.all()
        if self.limit is None:
            return []
        kept = {step_of(every[-1]), *keep}
        for path in every[-2::-1]:
            best = _best_step(path)
            wanted = kept | {step_of(path)} | ({best} if best is not None else set())
            kept = wanted if len(wanted) <= self.limit else kept
        return [path for path in every if step_of(path) not in kept]


def seal_checkpoint(folder: Path) -> None:
    """Brings every file to the disk, and after them the manifest: the SHA-256 of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        sync(path)
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(digests, indent=2))
    sync(partial)
    partial.replace(folder / MANIFEST)
    for inner in sorted({path.parent for path in files} | {folder}, reverse=True):
        sync(inner)


def sync(path: Path) -> None:
    """Brings a file or the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there and has its SHA-256."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        inside = all((folder / name).resolve().is_relative_to(folder.resolve()) for name in digests)
        return bool(digests) and inside and all(_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_checkpoint(folder: Path, needs_best: bool = True) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint-N under `folder` whose best checkpoint is whole too, or None; and those that are not whole.

    Raises RunError when the best checkpoint is lost, and with it what every whole one would end with; unless that is not needed.
    """
    every = Checkpoints(folder).all()[::-1]
    whole = [path for path in every if is_whole(path)]
    damaged = [path for path in every if path not in whole]
    names = {path.name for path in whole}
    for checkpoint in whole:
        best = _best_step(checkpoint)
        if best is None or f"checkpoint-{best}" in names:
            return checkpoint, damaged
    if whole and not needs_best:
        return whole[0], damaged
    if whole:
        problem = "the best checkpoint is lost, and those that are left would end with it"
        found = ", ".join(path.name for path in damaged) + " damaged" if damaged else "it was removed"
        fix = "put it back, or `tunesmith resume --accept-changes`: the best of what follows is kept"
        raise RunError("run.best_lost", problem, where=str(folder / f"checkpoint-{_best_step(whole[0])}"), found=found, fix=fix)
    return None, damaged


def _best_step(checkpoint: Path) -> int | None:
    """The step of the checkpoint whose model a run that goes on from here may end with."""
    try:
        state = read_state(checkpoint, "trainer_state.json")
    except (OSError, ValueError):  # damaged since it was sealed
        return None
    return state.get("best_global_step") if state.get("best_model_checkpoint") else None


def read_state(checkpoint: Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint; empty when there is none."""
    path = checkpoint / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, so that it is neither used nor lost."""
    names = [f"{DAMAGED}{checkpoint.name}", *(f"{DAMAGED}{checkpoint.name}-{number}" for number in range(2, 1000))]
    target = next(path for path in (checkpoint.with_name(name) for name in names) if not path.exists())
    return checkpoint.rename(target)


def step_of(checkpoint: Path) -> int:
    """N of checkpoint-N."""
    return int(checkpoint.name.rpartition("-")[2])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
