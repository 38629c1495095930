from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

import tiny_models


class Rows(Dataset):
    """Eight rows of four tokens and a label."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([2, 5 + index, 6 + index, 3]), "labels": torch.tensor(index % 2)}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without a head."""
    return tiny_models.save_tiny("bert", tmp_path_factory.mktemp("contracts") / "bert")


@pytest.fixture
def model(checkpoint: Path) -> BertForSequenceClassification:
    """The tiny BERT with a new head of two classes."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)


@pytest.fixture
def rows() -> Rows:
    return Rows()
