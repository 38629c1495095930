"""Signals and requests to a run: SIGINT and SIGTERM end it with a checkpoint, SIGUSR1 or a file asks for one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError

REQUEST = "checkpoint-now"
"""A file of this name in the run directory asks for a checkpoint."""
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


class Interruption:
    """What has been asked of a run from outside.

    While the run can stop with a checkpoint (`deferred`), a first signal is only noted; another one, or one at any other time, ends it at
    once.
    """

    def __init__(self, run: Path | None = None) -> None:
        self.run = run
        self.signal: str | None = None
        """The signal that asks it to stop."""
        self._save = False
        self._deferring = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listens for signals; only the main thread can.

        Raises RunError where a signal ended the run at once.
        """
        names = STOPPING if threading.current_thread() is threading.main_thread() else ()
        # One that is ignored (nohup) stays so.
        numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in numbers}
        if names:
            before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_request)
        try:
            yield
        except KeyboardInterrupt:
            started = self.run is not None and (self.run / "resolved.yaml").is_file()
            raise RunError(
                "run.interrupted", f"{self.signal or 'SIGINT'} stopped the run at once; every checkpoint that was written is whole",
                where=str(self.run or ""), fix=f"tunesmith resume {self.run}" if started else "start again: nothing was trained",
            ) from None  # fmt: skip
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A first signal is noted, for a checkpoint at the end of the step."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def take_request(self) -> bool:
        """Whether a checkpoint was asked for since this was last called."""
        asked, self._save = self._save, False
        request = self.run and self.run / REQUEST
        if request and request.exists():
            request.unlink(missing_ok=True)
            asked = True
        return asked

    def _note(self, number: int, frame: Any) -> None:
        again = self.signal is not None
        self.signal = self.signal or signal.Signals(number).name
        if again or not self._deferring:
            raise KeyboardInterrupt

    def _note_request(self, number: int, frame: Any) -> None:
        self._save = True
