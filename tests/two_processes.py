"""Runs of two processes as `torchrun` starts and watches them, forked from a process that has imported torch already."""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

COUNT = 2
LOOK_SECONDS = 0.0005
"""How long the end of a process is waited for before it is looked at again."""


def launched(action: Callable[[], None], folder: Path) -> None:
    """Does it in two processes under torchrun's agent, and ends when both have; raises when one fails. `folder` is for the agent's files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=COUNT, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        start_method="fork", logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )  # fmt: skip

    def joined() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of a training in the process that they are forked from, which was alone
        action()

    elastic_launch(config, joined)()


def workers(agent: int) -> list[int]:
    """The processes that an agent watches."""
    try:
        return [int(child) for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
    except OSError:
        return []


def kill_some(agent: int, rng: random.Random) -> None:
    """Kills one of the two processes, or both; the agent sees to what is left, and ends."""
    descriptor = os.pidfd_open(agent)
    try:
        # Until there are two, or the agent has ended.
        while len(found := workers(agent)) < COUNT and not select.select([descriptor], [], [], LOOK_SECONDS)[0]:
            pass
    finally:
        os.close(descriptor)
    for worker in rng.sample(found, min(rng.randint(1, COUNT), len(found))):
        os.kill(worker, signal.SIGKILL)
