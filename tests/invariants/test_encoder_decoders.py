"""Encoder-decoders take the steps of plain Seq2SeqTrainer, whatever the cuts; accelerated they compute what they compute without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from invariants.test_accelerations import apart
from resumption import resumed_equals_straight
from tiny_translations import ENCODER_DECODERS, LANGUAGES, save_tiny_encoder_decoder, tiny_encoder_decoder, write_pairs, write_translations
from trajectories import PlainSeq2SeqTrainer, Trajectory, assert_same_trajectory, by_trainer, by_tunesmith
from tunesmith.prepare import Prepared, prepare
from tunesmith.speed.choose import accelerated, choose
from tunesmith.speed.facts import Facts
from tunesmith.speed.kernels import dropout
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20
SETTINGS = [
    "task=seq2seq", "data.validation=none", "train.precision=fp32", "train.learning_rate=3e-3", "train.batch_size=8", "train.weight_decay=0.01",
    f"train.max_steps={NUM_STEPS}", "train.max_tokens_per_micro_batch=64", "train.adam_epsilon=1e-4",
]  # fmt: skip


def _plain(prepared: Prepared, folder: Path) -> Trajectory:
    """Seq2SeqTrainer with its own collator and the model's own loss."""
    rows = prepared.encoded["train"].dataset.select_columns(["input_ids", "labels"]).to_list()
    collator = transformers.DataCollatorForSeq2Seq(prepared.tokenizer, model=prepared.model)
    return by_trainer(prepared, folder, rows, collator, PlainSeq2SeqTrainer)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("t5", ["method=full"]),
        ("bart", ["method=full", "train.gradient_accumulation_steps=2", "train.batch_size=4"]),
        pytest.param("marian", ["method=full"], marks=pytest.mark.slow),
        ("mbart", ["method=full"]),
        ("t5", ["method=lora", "method.dropout=0.0", "method.rank=4"]),
        pytest.param("bart", ["method=freeze", "method.num_blocks=1"], marks=pytest.mark.slow),
    ],
    ids=["t5", "bart-accumulated", "marian", "mbart", "t5-lora", "bart-freeze"],
)
def test_twenty_steps_are_those_of_trainer(kind: str, overrides: list[str], tmp_path: Path) -> None:
    model = save_tiny_encoder_decoder(kind, tmp_path / "model")
    write = write_translations if kind in LANGUAGES else write_pairs
    spec = spec_of(str(write(tmp_path / "rows.jsonl")), [f"model={model}", *SETTINGS, *overrides])
    first = prepare(spec)
    assert max(len(step) for step in first.plan.batches(0)) > 1, "steps should be cut for this to say anything"
    ours, theirs = by_tunesmith(first, tmp_path / "ours"), _plain(prepare(spec), tmp_path / "theirs")
    assert_same_trajectory(ours, theirs, NUM_STEPS, (), atol=2e-4)
    assert np.mean(ours[0][-3:]) < np.mean(ours[0][:3])


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    """Those of a sum over the logits of real tokens times fixed weights, by name; the sum as `loss`."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[19], [11], [4]])
    mask = (torch.arange(24) < lengths).long()
    ids = torch.randint(5, 30, mask.shape, generator=draw).masked_fill(mask == 0, 1)
    decoder_ids = torch.randint(5, 30, (3, 8), generator=draw)
    written = (torch.arange(8) < torch.tensor([[3], [8], [6]])).long()
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, decoder_attention_mask=written).logits
    loss = (logits * torch.randn(logits.shape, generator=draw) * written[..., None]).sum()
    loss.backward()
    return {"loss": loss.detach(), **{name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}}


@pytest.mark.parametrize(("kind", "adapters"), [*((kind, False) for kind in ENCODER_DECODERS), ("t5", True), ("bart", True)], ids=str)
def test_accelerated_is_the_same(kind: str, adapters: bool) -> None:
    model = tiny_encoder_decoder(kind).train()
    if adapters:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")).train()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    facts = Facts(model, False, token_ids=lambda: np.arange(30))
    names, decisions = choose(facts, [])
    assert "linear" in names
    assert ("norm" in names) == (facts.on_cpu and "no compiler" not in str(decisions))
    assert "end_to_end" in names
    assert "embedding_rows" not in names
    expected = _gradients(model)
    with accelerated(facts, names):
        found = _gradients(model)
    assert apart(found, expected) < 2e-4
    assert apart(_gradients(model), expected) == 0.0  # as it was


def test_end_to_end_is_not_for_layers_left_out_at_random() -> None:
    model = tiny_encoder_decoder("bart").train()
    model.config.decoder_layerdrop = 0.1
    names, decisions = choose(Facts(model, False), [])
    assert "end_to_end" not in names
    assert "layerdrop" in next(decision.because for decision in decisions if decision.field == "speed.end_to_end")


@pytest.mark.parametrize("kind", [kind for kind in ENCODER_DECODERS if not kind.startswith("t5")])
def test_dropout_that_is_a_call_is_another_function_in_the_blocks_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_encoder_decoder(kind, dropout=0.3).train()
    calls = []

    def drop(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        calls.append(p)
        return dropout(input, p) if training and p > 0 else input

    monkeypatch.setattr("torch.nn.functional.dropout", drop)
    torch.manual_seed(0)
    expected = _gradients(model)
    assert len(calls) == 2 + 4 * 3 + 2  # embeddings; three in each block, and what its attention to the source adds
    with accelerated(Facts(model, False), ["dropout"]):
        calls.clear()
        torch.manual_seed(0)
        assert apart(_gradients(model), expected) == 0.0
        assert len(calls) == 2
    torch.manual_seed(0)
    calls.clear()
    assert apart(_gradients(model), expected) == 0.0  # as it was
    assert len(calls) > 2


def test_stacks_hold_the_layers_of_both_sides() -> None:
    from tunesmith.speed.linear import find_stacks

    model = tiny_encoder_decoder("bart")
    modules = {layer.module for stack in find_stacks(Facts(model, True)) for layer in stack.layers}
    names = {name for name, module in model.named_modules() if module in modules}
    assert {f"model.{side}.layers.1.fc1" for side in ("encoder", "decoder")} <= names
    assert "model.decoder.layers.0.encoder_attn.k_proj" in names


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_resumed_equals_straight(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_pairs(tmp_path / "rows.jsonl", 50)
    settings = [
        f"model={save_tiny_encoder_decoder('bart', tmp_path / 'model', dropout=0.1)}", f"method={method}", "task.metrics=[exact_match]",
        "task.num_generated_in_training=4", "data.validation=20%", "train.precision=fp32", "train.epochs=2", "train.batch_size=4",
        "train.gradient_accumulation_steps=2", "train.learning_rate=5e-3", "train.save_steps=3", "train.eval_steps=3", "train.logging_steps=1",
        "train.save_total_limit=none",
    ]  # fmt: skip
    run, log = resumed_equals_straight(data, settings, tmp_path, monkeypatch, crash_after=5)
    assert run.directory.read_json("eval/validation.json")["num_generated"] == 10
    assert any("eval_exact_match" in entry for entry in log)
