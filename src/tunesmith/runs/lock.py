"""One process at a time: a lock on a run directory that names its owner, and that the kernel drops when the owner dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tunesmith.errors import InputError

LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[str | None]:
    """Holds the lock; gives what an owner that died with it had written there.

    Raises InputError when another process holds it.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        file.seek(0)
        owner = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "wait for it, stop it, or give another --run"
            raise InputError("usage.run_in_use", "another process works on this run", where=str(folder), found=owner, fix=fix) from None
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        file.flush()
        try:
            yield owner or None
        finally:
            file.truncate(0)
