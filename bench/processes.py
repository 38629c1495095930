"""Runs a command in a process of its own, and watches the memory of it and its children."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.05
CHILDREN_SECONDS = 1.0
"""How often children are looked for: it takes all processes of the machine, and time from what is measured."""
SHOWN_CHARACTERS = 400


@dataclass
class Watched:
    """How a command ended, and the memory it had."""

    returncode: int = 0
    error: str = ""
    """The last line it wrote, if it failed."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(wall-clock time, resident bytes of all its processes)."""

    def peak_bytes(self, until: float | None = None) -> int:
        """The most memory, until a time or in all."""
        return max((size for moment, size in self.memory if until is None or moment <= until), default=0)


def run_watched(command: list[str], environment: dict[str, str], folder: Path, timeout_seconds: float, log: Path) -> Watched:
    """Runs a command in a folder, its output in `log`; after the timeout it is ended."""
    watched = Watched()
    with log.open("w") as file:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}  # what is written last then stands last
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, watched.memory, done))
        sampler.start()
        try:
            watched.returncode = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            watched.returncode, watched.error = 1, f"ended after {timeout_seconds:.0f} s"
        except BaseException:
            _end(process)
            raise
        finally:
            done.set()
            sampler.join()
    if watched.returncode and not watched.error:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        signalled = (
            f"ended by signal {-watched.returncode}" if watched.returncode < 0 else f"ended with {watched.returncode}, and wrote nothing"
        )
        watched.error = lines[-1][:SHOWN_CHARACTERS] if lines and watched.returncode > 0 else signalled
    return watched


def _end(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def _sample(pid: int, memory: list[tuple[float, int]], done: threading.Event) -> None:
    processes: list[psutil.Process] = []
    looked = 0.0
    while not done.wait(SAMPLE_SECONDS):
        now = time.time()
        try:
            if now - looked >= CHILDREN_SECONDS:
                process, looked = psutil.Process(pid), now
                processes = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        memory.append((now, sum(map(_resident, processes))))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
