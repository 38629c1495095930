"""The run directory: what a run leaves behind, and typed ways to read and write it.

spec.yaml       the spec as it was given          resolved.yaml    the spec with every `auto` decided
decisions.json  what was decided, and why         environment.json versions and machine
data.json       files, hashes, counts             rejected.jsonl   rows left out, with the reason
events.jsonl    what happened, line by line       checkpoints/     checkpoint-N, each with its manifest
model/          plain Hugging Face files          eval/            validation.json, test.json, ...
proof.json      the saved model, reloaded         result.json      written last: the run is complete
model.json      hashes of what it started from    lock             who works on it now
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.runs.checkpoints import step_of, sync
from tunesmith.runs.lock import LOCK
from tunesmith.runs.secrets import redact
from tunesmith.spec import RunSpec
from tunesmith.spec_file import dump_values
from tunesmith.strict import load_spec

BEFORE_START = ("checkpoints", "eval", LOCK, "rejected.jsonl", "spec.yaml", "decisions.json", "environment.json", "data.json", "model.json")
"""What a run directory may hold before its last file that comes before training, resolved.yaml."""


class RunDirectory:
    """Paths of a run, and readers and writers of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path | None, task: str) -> RunDirectory:
        """A new run directory at `path`, or under `runs/` with date and time.

        Raises InputError when it already holds something or cannot be written.
        """
        folder = Path(path) if path is not None else _free_name(Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{task}")
        if folder.exists() and not (folder.is_dir() and all(_is_beginning(path) for path in folder.iterdir())):
            raise InputError(
                "usage.run_exists",
                "the run directory is not empty",
                where=str(folder),
                fix=f"`tunesmith resume {folder}` goes on with it; or give another --run",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "eval").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                "usage.run_exists", "the run directory cannot be made", where=str(folder), found=str(error), fix="give another --run"
            ) from error
        return cls(folder.absolute())

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The run directory at `path`."""
        folder = Path(path)
        if not (folder / "resolved.yaml").is_file():
            found = "no such folder" if not folder.is_dir() else "no resolved.yaml in it"
            raise InputError(
                "usage.no_such_run",
                "this is not a run directory",
                where=str(folder),
                found=found,
                fix="name the folder that `tunesmith train` printed",
            )
        return cls(folder.absolute())

    @property
    def checkpoints(self) -> Path:
        """Where checkpoint-N stand."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.path / "model"

    @property
    def is_complete(self) -> bool:
        """Whether the run ended, and its model was proven."""
        return (self.path / "result.json").is_file()

    def spec(self, overrides: Iterable[str] = ()) -> RunSpec:
        """The resolved spec, with overrides such as `train.epochs=5` applied."""
        return load_spec(self.path / "resolved.yaml", overrides)

    def write_spec(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a spec as YAML."""
        self._write(name, dump_values(dict(values), sort_keys=False, width=120))

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file in one piece."""
        self._write(name, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file of the run, or None when there is none."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def add_event(self, kind: str, **values: Any) -> None:
        """Appends a line to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **values}, ensure_ascii=False, default=str)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(redact(line) + "\n")

    def add_checkpoint(self, checkpoint: Path) -> None:
        """Notes that a checkpoint is in place."""
        self.add_event("checkpoint", step=step_of(checkpoint), path=str(checkpoint.relative_to(self.path)))

    def cut_events(self) -> None:
        """Removes a last line that was cut off, so that the next one does not join it."""
        path = self.path / "events.jsonl"
        content = path.read_bytes() if path.is_file() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)

    def events(self) -> list[dict[str, Any]]:
        """All events; a last line that was cut off is left out."""
        path = self.path / "events.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        temporary = path.with_name(f".{path.name}.partial")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(redact(text))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)


def _is_beginning(path: Path) -> bool:
    """Whether this is part of a run that ended before its first step."""
    if path.is_dir():
        return path.name in BEFORE_START and not any(path.iterdir())
    return path.name in BEFORE_START or path.name.endswith(".partial")


def _free_name(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
