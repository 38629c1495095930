"""A model whose steps are the same whatever the shape of its batches."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def still_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without dropout, whose draws depend on the shape of a batch."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "still-bert"
    transformers.AutoModel.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder
