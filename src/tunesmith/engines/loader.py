"""A loader whose batches are the steps of a plan, each already cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from tunesmith.data.plan import BatchPlan


class _Steps(Dataset[Any]):
    """Hands each step of the plan to the collator whole."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitems__(self, numbered: list[Any]) -> list[Any]:
        return numbered


class _PlanSampler(Sampler[list[Any]]):
    """The steps of an epoch, as this process computes them."""

    def __init__(self, plan: BatchPlan, rank: int, limits: dict[int, int]) -> None:
        self.plan, self.rank, self.limits, self.epoch = plan, rank, limits, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose steps come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[list[Any]]:
        first = self.epoch * self.plan.steps_per_epoch
        for step, rows in enumerate(self.plan.drawn(self.epoch), first):
            limit = next((self.limits[since] for since in sorted(self.limits, reverse=True) if since <= step), None)
            yield [self.plan.cut(rows[self.rank :: self.plan.world_size], limit), rows, self.epoch]


class PlanLoader(DataLoader[Any]):
    """A loader that tells its plan the epoch; left unprepared by accelerate, since the plan knows the processes.

    `step_batch` makes the batch of (micro-batches, rows, epoch); `limits` says from which step on (counted from 0) how many tokens a
    micro-batch may have, where that is not what the plan says.
    """

    def __init__(self, plan: BatchPlan, num_rows: int, rank: int, limits: dict[int, int], step_batch: Callable[..., Any]) -> None:
        super().__init__(
            _Steps(num_rows), batch_sampler=_PlanSampler(plan, rank, limits), collate_fn=lambda numbered: step_batch(*numbered)
        )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose steps come next."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
