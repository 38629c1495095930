"""Forward passes without gradients: evaluation, prediction and the check of what was saved all go through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.collate import collate_rows
from tunesmith.data.encode import Encoded, Examples
from tunesmith.data.plan import cut_by_length
from tunesmith.registry import Task
from tunesmith.spec import TrainSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROWS_SORTED_AT_ONCE = 4096


@dataclass
class Scorer:
    """A model ready to score rows of a task."""

    model: PreTrainedModel
    task: Task
    section: Any
    pad_token_id: int
    train: TrainSpec
    """Gives precision and the size of a forward pass."""

    def outputs(
        self, encoded: Encoded, advance: Callable[[int], None] = lambda rows: None
    ) -> Iterator[tuple[np.ndarray, Any, torch.Tensor | None]]:
        """(example indices [batch], what the task's `forward` gives, labels) by batches of similar length, in eval mode.

        Rows are sorted by length a few thousand at a time, so memory does not grow with their number.
        """
        import torch

        was_training = self.model.training
        self.model.eval()
        tokens = int(self.train.max_tokens_per_micro_batch)
        try:
            for start in range(0, len(encoded), ROWS_SORTED_AT_ONCE):
                lengths = encoded.sizes[start : start + ROWS_SORTED_AT_ONCE]
                for part in cut_by_length(lengths, tokens, self.train.eval_batch_size):
                    indices = part + start
                    batch = collate_rows(encoded, indices, self.task, self.section, self.pad_token_id)
                    batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                    labels = batch.pop("labels", None)
                    with torch.inference_mode(), autocast(self.model, str(self.train.precision)):
                        outputs = self.task.forward(self.section, self.model, batch, labels)
                    yield indices, outputs, labels
                    advance(len(indices))
        finally:
            self.model.train(was_training)

    def evaluate(
        self,
        encoded: Encoded,
        tuned: dict[str, Any] | None = None,
        intervals: bool = True,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> dict[str, Any]:
        """What the task's meter reports over all rows, and the mean loss among the metrics."""
        thresholds = (tuned or {}).get("thresholds")
        meter = self.task.meter(self.section, thresholds) if thresholds else self.task.meter(self.section)
        loss, weight = 0.0, 0.0
        for indices, outputs, labels in self.outputs(encoded, advance):
            assert labels is not None
            meter.update(outputs, labels, Examples(encoded, indices))
            loss += float(self.task.loss(self.section, outputs, labels, 0.0))
            weight += self.task.loss_weight(self.section, labels.tolist())
        result = meter.compute(intervals)
        result["metrics"]["loss"] = loss / weight
        return {**result, "num_rows": len(np.unique(encoded.row)) if self.task.join or self.task.writes_target else len(encoded)}


def autocast(model: PreTrainedModel, precision: str) -> AbstractContextManager[Any]:
    """Arithmetic in bf16 where precision says so; weights stay as they are."""
    import torch

    return torch.autocast(model.device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
