"""LitGPT's own LoRA model and the training step of its `finetune_lora`, on tokens that are given: as it ships (bf16 mixed precision, one
row at a time), and tuned (weights in bf16 where that is faster, each step sorted by length and cut as in the tuned PyTorch loop, fused AdamW)."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.utils import chunked_cross_entropy, get_default_supported_precision, instantiate_torch_optimizer, load_checkpoint

from bench.peers.given import Given, Row, collate, evaluate, num_trainable, read_request
from bench.peers.pytorch import micro_batches, weight
from bench.peers.record import Record

MODEL = "SmolLM2-135M"
"""What LitGPT calls the model of the works that it does."""


def converted(given: Given) -> Path:
    """The model's weights as LitGPT reads them."""
    folder = given.scratch / MODEL
    folder.mkdir()
    for file in Path(given.model_path).glob("*.safetensors"):
        os.symlink(file, folder / file.name)
    convert_hf_checkpoint(folder)
    return folder


def config_of(given: Given, folder: Path) -> Config:
    """The model's configuration, with adapters on every linear layer of its blocks."""
    parts = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}
    settings = given.lora
    return Config.from_file(
        folder / "model_config.yaml",
        lora_r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        **parts,
    )


def parts_of(batch: list[Row], given: Given) -> list[tuple[list[Row], float]]:
    """The micro-batches of a step, and what the mean loss of each counts for."""
    if not given.is_tuned:
        return [([row], 1 / len(batch)) for row in batch]
    return [(part, weight(part) / weight(batch)) for part in micro_batches(batch, given)]


class AsTransformers:
    """The model, called as one of transformers is."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def eval(self) -> None:
        """Switches dropout off."""
        self.model.eval()

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.model(input_ids))


def main() -> None:
    """Trains as asked."""
    given, record = read_request(), Record()
    rows = given.rows()
    folder = converted(given)
    tuned = "bf16-true" if given.bf16 else "32-true"
    precision = tuned if given.is_tuned else get_default_supported_precision(training=True)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    fabric.launch()
    fabric.seed_everything(given.seed)
    with fabric.init_module(empty_init=False):
        plain = GPT(config_of(given, folder))
    mark_only_lora_as_trainable(plain)
    record.trainable = num_trainable(plain)
    model = fabric.setup_module(plain)
    settings = {"lr": given.learning_rate, "weight_decay": 0.0, "fused": given.is_tuned}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer({"class_path": "torch.optim.AdamW", "init_args": settings}, trained))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / given.steps))
    load_checkpoint(fabric, model, folder / "lit_model.pth", strict=False)
    model.max_seq_length = max(len(row["input_ids"]) for row in [*rows, *given.rows("held")])
    record.notes.append(f"precision {precision}" + ("" if given.is_tuned else "; the mean loss of each row counts alike"))
    record.start()
    for start in range(0, len(rows), given.batch_size):
        batch, total = rows[start : start + given.batch_size], 0.0
        for part, share in parts_of(batch, given):
            inputs = collate(part, given.pad_token_id)
            logits = model(inputs["input_ids"], lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            loss = chunked_cross_entropy(logits, inputs["labels"][..., 1:]) * share
            fabric.backward(loss)
            total += float(loss.detach())
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        record.tokens.append(sum(len(row["input_ids"]) for row in batch))
        record.step(total)
    record.metrics = evaluate(AsTransformers(model), given)
    record.write(given.out)


if __name__ == "__main__":
    main()
