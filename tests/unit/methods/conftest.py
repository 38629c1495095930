from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_models


@pytest.fixture
def language_model(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny language model and its tokenizer; arguments are those of its configuration."""

    def save(kind: str, **config: Any) -> Path:
        tokenizer, folder = tiny_models.bpe_tokenizer(), tmp_path / "base"
        tiny_models.tiny_decoder(kind, len(tokenizer), **config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save
