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
IGNORED = -100
"""The label of a token that is not trained, as in torch and transformers."""


def collate_rows(
    encoded: Encoded,
    indices: np.ndarray | Sequence[int],
    task: Task,
    section: Any,
    pad_token_id: int,
    pack: bool = False,
) -> dict[str, torch.Tensor]:
    """The examples at `indices` as `collate_columns` lays them out, with what is drawn for evaluation."""
    return collate_columns(encoded.examples(indices), encoded, indices, task, section, pad_token_id, pack)


def collate_columns(
    columns: dict[str, list[Any]],
    encoded: Encoded,
    indices: np.ndarray | Sequence[int],
    task: Task,
    section: Any,
    pad_token_id: int,
    pack: bool,
) -> dict[str, torch.Tensor]:
    """Tensors [rows, longest row] of the examples at `indices`, padded on the right; `labels` as the task makes them, if there are any.

    With `pack` they lie end to end in tensors [1, all tokens], each with positions from 0, and nothing is masked: a model that
    reads positions keeps them apart. Lengths are rounded up to a multiple of 8: every new shape has its kernels compiled and kept,
    in time and memory.
    """
    import torch

    lengths = encoded.lengths[np.asarray(indices)]
    if pack:
        return _packed(columns, lengths, pad_token_id)
    longest = -(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    shape = (len(lengths), max(min(longest, encoded.max_length), int(lengths.max())))
    mask = np.arange(shape[1])[None, :] < lengths[:, None]
    batch = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
    for name, values in columns.items():
        if name in task.carried:
            continue
        if name == "labels":
            batch["labels"] = task.label_tensor(section, values, shape)
            continue
        padded = np.full(shape, pad_token_id if name == "input_ids" else 0, dtype=np.int64)
        padded[mask] = np.concatenate([np.asarray(value, dtype=np.int64) for value in values])
        batch[name] = torch.from_numpy(padded)
    return batch


def _packed(columns: dict[str, Any], lengths: np.ndarray, pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids, position_ids and labels; what fills up the last eight tokens is one more example, of which nothing is learnt."""
    import torch

    fill = -int(lengths.sum()) % LENGTH_MULTIPLE
    ids = np.concatenate([*columns["input_ids"], np.full(fill, pad_token_id)]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in (*lengths, fill)]).astype(np.int64)
    batch = {"input_ids": ids, "position_ids": positions}
    if "labels" in columns:
        labels = np.concatenate([*columns["labels"], np.full(fill, IGNORED)]).astype(np.int64)
        labels[positions == 0] = IGNORED
        batch["labels"] = labels
    return {name: torch.from_numpy(values)[None, :] for name, values in batch.items()}


def pad_token_labels(labels: Sequence[Sequence[int]], shape: tuple[int, int]) -> torch.Tensor:
    """Labels of tokens [rows, longest row]; padding is ignored, by its position."""
    import torch

    padded = np.full(shape, IGNORED, dtype=np.int64)
    for row, values in enumerate(labels):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)
