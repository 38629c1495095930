"""The processes that train one model together, as `torchrun` and `accelerate launch` start them.

Each computes its share of every step's rows; gradients are added up, so all take the same step. The first process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RunError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Processes:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def tell(self, value: Any = None) -> Any:
        """What the first process gives here, in every process. Raises RunError when it is gone."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _lost_processes():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, *values: bool) -> list[bool]:
        """Of each value, whether it is true in one of them."""
        if self.count == 1:
            return list(values)
        import torch

        return [bool(found) for found in self.sum(torch.tensor(values, dtype=torch.int32, device=compute_device()))]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of each element over the processes."""
        if self.count > 1:
            self._add([tensor])
        return tensor

    def wait(self) -> None:
        """Returns when all have come here."""
        self.any(False)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Makes every gradient the sum over the processes; one that some lack counts as zeros there."""
        if self.count == 1:
            return
        import torch

        trained = [parameter for parameter in parameters if parameter.requires_grad]
        has_gradient = self.any(*(parameter.grad is not None for parameter in trained))
        gradients = []
        for parameter in (parameter for parameter, has in zip(trained, has_gradient, strict=True) if has):
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            gradients.append(parameter.grad)
        self._add(gradients)

    def _add(self, tensors: list[torch.Tensor]) -> None:
        import torch.distributed as dist

        with _lost_processes():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()


def compute_device() -> torch.device:
    """Where this process computes, as accelerate and TrainingArguments have it: a GPU of its own if there are any, or the processor."""
    import torch
    from transformers.utils import strtobool

    if not torch.cuda.is_available() or strtobool(os.environ.get("ACCELERATE_USE_CPU", "false")):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def join_processes() -> Processes:
    """This process and the others that were started with it, connected; alone when there are none."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=compute_device().type == "cpu")
    return Processes(state.process_index, state.num_processes)


@contextmanager
def _lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "run.other_process",
            "another process of the run is gone",
            found=" ".join(str(error).split())[:200],
            fix="see what it says; then `tunesmith resume`, started as the run was",
        ) from error
