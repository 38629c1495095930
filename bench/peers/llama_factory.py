"""LLaMA-Factory's run_exp on tokens that are given: as it ships (fp32 on a CPU, gradient checkpointing), and tuned (bf16 where that is
faster, no checkpointing)."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.peers.given import Given, Row, evaluate, num_trainable, read_request
from bench.peers.record import Record


def do_without_images_and_sound() -> None:
    """Stands in for two packages that it imports for these, whose wheels load only where CUDA's libraries are."""
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
    sys.modules["torchvision"] = None  # type: ignore[assignment]


def settings_of(given: Given, tokens: Path) -> dict[str, Any]:
    """Its arguments, beside those of Trainer."""
    settings = {
        "stage": "sft", "do_train": True, "model_name_or_path": given.model_path, "dataset": "given", "tokenized_path": str(tokens),
        "template": "default", "cutoff_len": given.max_length, "disable_shuffling": True, "finetuning_type": "full",
    }  # fmt: skip
    if given.lora:
        targets = ",".join(sorted({name.rpartition(".")[2] for name in given.lora["target_modules"]}))
        settings |= {
            "finetuning_type": "lora", "lora_rank": given.lora["r"], "lora_alpha": int(given.lora["lora_alpha"]),
            "lora_dropout": given.lora["lora_dropout"], "lora_target": targets,
        }  # fmt: skip
    return settings | ({"bf16": given.bf16, "disable_gradient_checkpointing": True} if given.is_tuned else {})


def save_tokens(rows: list[Row], folder: Path) -> None:
    """The rows as it keeps them itself once they are tokenized."""
    from datasets import Dataset, DatasetDict

    columns = [{"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"]), "labels": row["labels"]} for row in rows]
    DatasetDict({"train": Dataset.from_list(columns)}).save_to_disk(folder)


def main() -> None:
    """Trains as asked."""
    do_without_images_and_sound()
    from llamafactory.train.tuner import run_exp

    from bench.peers.trainer import Note, arguments_of

    given, record = read_request(), Record()
    rows = given.rows()
    save_tokens(rows, given.scratch / "tokens")
    lengths = [len(row["input_ids"]) for row in rows]
    record.tokens = [sum(lengths[start : start + given.batch_size]) for start in range(0, len(lengths), given.batch_size)]

    class Finish(Note):
        """Notes steps, and evaluates when the last is done."""

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            record.trainable = num_trainable(model)
            record.metrics = evaluate(model, given)

    # how it reports is its own choice
    own = {name: value for name, value in arguments_of(given).items() if name != "report_to"}
    run_exp({**own, **settings_of(given, given.scratch / "tokens")}, [Finish(record)])
    record.write(given.out)


if __name__ == "__main__":
    main()
