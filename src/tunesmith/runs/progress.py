"""Progress of long work on standard error: bars on a terminal, plain lines elsewhere, always with an ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows one or more counted activities; `quiet` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._live: Any = None
        self._nesting = 0

    @contextmanager
    def activity(self, name: str, total: int, done: int = 0) -> Iterator[Activity]:
        """An activity of `total` units, of which `done` were done before."""
        if self.quiet:
            yield Activity(name, total, done)
            return
        if not sys.stderr.isatty():
            yield _PlainActivity(name, total, done)
            return
        live = self._enter_live()
        number = live.add_task(name, total=total, completed=done, shown="")
        try:
            yield _LiveActivity(name, total, done, live, number)
        finally:
            live.remove_task(number)
            self._exit_live()

    def _enter_live(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        if self._live is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
            times = (TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._live = RichProgress(*columns, *times, console=Console(stderr=True), transient=True)
            self._live.start()
        self._nesting += 1
        return self._live

    def _exit_live(self) -> None:
        self._nesting -= 1
        if self._nesting == 0:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


class Activity:
    """Counted work; shows nothing."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done, self.first = name, total, done, done
        self.started = time.monotonic()

    def advance(self, units: int = 1, shown: str = "") -> None:
        """Notes that units are done; `shown` is a short text such as the loss."""
        self.done += units

    def rate(self, more: int = 0) -> float:
        """Units a second since the start, with `more` that are just done."""
        return (self.done + more - self.first) / max(time.monotonic() - self.started, 1e-9)


class _LiveActivity(Activity):
    def __init__(self, name: str, total: int, done: int, live: Any, number: int) -> None:
        super().__init__(name, total, done)
        self.live, self.number = live, number

    def advance(self, units: int = 1, shown: str = "") -> None:
        super().advance(units)
        self.live.update(self.number, completed=self.done, **({"shown": shown} if shown else {}))


class _PlainActivity(Activity):
    def __init__(self, name: str, total: int, done: int) -> None:
        super().__init__(name, total, done)
        self.last_line = self.started
        self.shown = ""

    def advance(self, units: int = 1, shown: str = "") -> None:
        super().advance(units)
        self.shown = shown or self.shown
        now = time.monotonic()
        if now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        left = (self.total - self.done) / max(self.rate(), 1e-9)
        print(f"{self.name} {self.done}/{self.total}  {self.shown}  {format_seconds(left)} left", file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
