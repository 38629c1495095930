"""Necessary operations agree with counting by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from bench.limit import Shapes, gemm_gflops, necessary_operations, shapes_of
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

ROWS = [{"input_ids": [1] * 10, "labels": [-100] * 6 + [1] * 4}, {"input_ids": [1] * 20, "labels": [1] * 20}]


def settings(**changes: Any) -> dict[str, Any]:
    """A full training."""
    return {"kind": "train", "lora": None, **changes}


def test_shapes_of_an_encoder_with_a_pooler() -> None:
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=5,
    )
    shapes = shapes_of(BertForSequenceClassification(config), per_token=False)
    # of the last block, keys and values are needed of all tokens
    per_row = Counter({(8, 8): 3, (8, 16): 1, (16, 8): 1, (8, 5): 1})
    assert shapes == Shapes(Counter({(8, 8): 10, (8, 16): 2, (16, 8): 2}), per_row, None, 24, False)


def test_shapes_of_a_decoder_leave_its_head_apart() -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16
    )
    shapes = shapes_of(LlamaForCausalLM(config), per_token=True)
    assert shapes == Shapes(Counter({(8, 8): 4, (8, 4): 4, (8, 16): 4, (16, 8): 2}), Counter(), (8, 20), 16, True)


SHAPES = Shapes(Counter({(8, 16): 3}), Counter({(8, 2): 1}), None, 24, False)


@pytest.mark.parametrize(
    ("changes", "operations"),
    [
        ({}, 6 * 384 * 30 + 6 * 16 * 2 + 12 * 24 * 500),
        ({"lora": {"r": 2}}, (4 * 384 + 6 * 2 * 24 * 3) * 30 + 4 * 16 * 2 + 12 * 24 * 500),
        ({"kind": "predict"}, 2 * 384 * 30 + 2 * 16 * 2 + 4 * 24 * 500),
    ],
)
def test_operations_of_an_encoder(changes: dict[str, Any], operations: float) -> None:
    assert necessary_operations(SHAPES, settings(**changes), ROWS) == operations


def test_a_decoder_attends_backwards_and_scores_trained_tokens() -> None:
    shapes = Shapes(Counter({(8, 16): 3}), Counter(), (8, 20), 24, True)
    # 4 of the first row; all of the second but its first token, before which there is nothing
    assert necessary_operations(shapes, settings(), ROWS) == 6 * 384 * 30 + 12 * 24 * (55 + 210) + 6 * 160 * 23


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_have_a_rate(dtype: torch.dtype) -> None:
    assert gemm_gflops(SHAPES, 8, with_weight_gradients=True, backward=True, dtype=dtype) > 0
