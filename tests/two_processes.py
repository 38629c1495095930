"""Runs of two processes, started and watched as `torchrun` does it, but forked from a process that has imported torch already.

torchrun's own agent, when it forks, tells its workers of the end by a `multiprocessing.Event`, and waits for good on one that was killed just then.
"""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch.distributed import TCPStore

COUNT = 2
HOST = "localhost"
LOOK_SECONDS = 0.0005
"""How long the end of a process is waited for before it is looked at again."""


def forked(action: Callable[[], Any]) -> int:
    """A child that does it, and whose exit code is 0 when that ends well."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def launched(action: Callable[[], None]) -> None:
    """Does it in two processes, and ends when both have; when one fails the other is told to end, and this raises."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)

    def joined(rank: int) -> None:
        place = {"LOCAL_RANK": rank, "RANK": rank, "LOCAL_WORLD_SIZE": COUNT, "WORLD_SIZE": COUNT, "MASTER_PORT": store.port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR=HOST, TORCHELASTIC_USE_AGENT_STORE="True")
        AcceleratorState._reset_state(reset_partial_state=True)  # of a training in the process that they are forked from, which was alone
        action()

    living = {forked(lambda rank=rank: joined(rank)) for rank in range(COUNT)}
    has_failed = False
    while living:
        worker, status = os.wait()
        living.remove(worker)
        if status:
            has_failed = True
            for other in living:
                os.kill(other, signal.SIGTERM)
    if has_failed:
        raise ChildProcessError("a worker failed")


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
