from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tunesmith.models.mapped import PRESENT, give_back, pages_of

SIDE = 256
"""Of a matrix of 64 pages."""


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """A matrix of ones, read from its file."""
    save_file({"before": torch.zeros(5), "weight": torch.ones(SIDE, SIDE)}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor("weight")
    return tensor


def num_present(tensor: torch.Tensor) -> int:
    """Pages of a tensor that are in memory."""
    return int(((pages_of(tensor)[1] & PRESENT) != 0).sum())


def test_pages_of_a_file_are_given_back_and_read_again(mapped: torch.Tensor) -> None:
    assert float(mapped.sum()) == SIDE**2
    assert num_present(mapped) >= 62
    assert give_back(mapped)
    assert num_present(mapped) == 0
    assert float(mapped.sum()) == SIDE**2


def test_a_changed_weight_is_kept(mapped: torch.Tensor) -> None:
    mapped[SIDE // 2, 3] = 7.0
    assert not give_back(mapped)
    assert float(mapped.sum()) == SIDE**2 + 6


@pytest.mark.parametrize(
    "make", [lambda whole: whole.clone(), lambda whole: whole.t(), lambda whole: whole[0, :8]], ids=["new", "turned", "small"]
)
def test_what_is_no_file_s_is_kept(mapped: torch.Tensor, make: object) -> None:
    tensor = make(mapped)  # type: ignore[operator]
    assert not give_back(tensor)
    assert bool((tensor == 1).all())
