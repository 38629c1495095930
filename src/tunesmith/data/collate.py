"""Pads the rows of a micro-batch to its longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.encode import Encoded
from tunesmith.registry import Task

if TYPE_CHECKING:
    import torch

LENGTH_MULTIPLE = 8


def collate_rows(
    encoded: Encoded, indices: np.ndarray | Sequence[int], task: Task, section: Any, pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Tensors [rows, longest row] of the rows at `indices`, padded on the right; `labels` as the task makes them, when there are any.

    The longest is rounded up to a multiple of 8: every new shape has its kernels compiled and kept, in time and memory.
    """
    import torch

    columns = encoded.dataset[[int(index) for index in indices]]
    lengths = encoded.lengths[np.asarray(indices)]
    longest = -(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    shape = (len(lengths), min(longest, encoded.max_length))
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    batch = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
    for name, values in columns.items():
        if name == "labels":
            batch["labels"] = task.label_tensor(section, values)
            continue
        padded = np.full(shape, pad_token_id if name == "input_ids" else 0, dtype=np.int64)
        padded[mask] = np.concatenate([np.asarray(value, dtype=np.int64) for value in values])
        batch[name] = torch.from_numpy(padded)
    return batch
