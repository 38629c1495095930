"""The works that tunesmith and its peers are compared on: a spec, a number of steps, and how everyone is told what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SST2 = {"train": "sst2/train.tsv", "validation": "sst2/dev.tsv"}
LORA = {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0}


@dataclass(frozen=True)
class Work:
    """Something to be trained or predicted, the same for all."""

    name: str
    summary: str
    kind: Literal["train", "probe", "predict"]
    spec: dict[str, Any]
    """tunesmith's spec, without `data.root` and the number of steps."""
    steps: int
    """Optimizer steps, all within one epoch; of a probe or a prediction, batches of rows."""
    batch_size: int
    micro_batches: int = 1
    """Into how many parts the tuned PyTorch loop cuts a step that it has sorted by length."""

    @property
    def per_token(self) -> bool:
        """Whether tokens have labels."""
        return "task" in self.spec and self.spec["task"]["name"] != "text_classification"

    def spec_of(self, data: Path, steps: int) -> dict[str, Any]:
        """The whole spec: so many steps, each logged, and nothing else done between them."""
        train = {
            **self.spec.get("train", {}), "batch_size": self.batch_size, "max_steps": steps, "logging_steps": 1, "eval_steps": "none",
            "save_steps": "none", "load_best_model_at_end": False,
        }  # fmt: skip
        task = self.spec.get("task", {"name": "text_classification"})
        return {**self.spec, "task": task, "data": {**self.spec["data"], "root": str(data.absolute())}, "train": train}


WORKS = {
    work.name: work
    for work in (
        Work(
            "minilm-full-sst2", "MiniLM, all weights, sentences of film reviews", "train",
            {"model": "minilm", "data": SST2, "method": "full", "train": {"learning_rate": 1e-4}},
            steps=100, batch_size=32, micro_batches=2,
        ),
        Work(
            "minilm-full-cfimdb", "MiniLM, all weights, long film reviews of up to 512 tokens", "train",
            {
                "model": "minilm", "method": "full", "task": {"name": "text_classification", "max_length": 512}, "train": {"learning_rate": 1e-4},
                "data": {"train": "cfimdb/cfimdb-train.tsv", "validation": "cfimdb/cfimdb-dev.tsv"},
            },
            steps=25, batch_size=16, micro_batches=4,
        ),
        Work(
            "minilm-lora-sst2", "MiniLM, LoRA of rank 16 on all linear layers, sentences of film reviews", "train",
            {"model": "minilm", "data": SST2, "method": LORA, "train": {"learning_rate": 5e-4}},
            steps=100, batch_size=32, micro_batches=2,
        ),
        Work(
            "smollm2-lora-oasst", "SmolLM2-135M, LoRA of rank 16 on all linear layers, conversations of up to 1,024 tokens", "train",
            {
                "task": {"name": "chat", "leave_out": {"synthetic": True}, "max_length": 1024, "too_long": "skip"}, "model": "smollm2",
                "data": {"train": "oasst_en100/en_100_tree.jsonl", "validation": "20%"}, "method": LORA, "train": {"learning_rate": 2e-4},
            },
            steps=8, batch_size=8, micro_batches=4,
        ),
        Work(
            "smollm2-full-wikitext2", "SmolLM2-135M, all weights, running text in blocks of 512 tokens", "train",
            {
                "task": {"name": "causal_lm", "max_length": 512}, "model": "smollm2", "method": "full", "train": {"learning_rate": 5e-5},
                "data": {"train": "wikitext2_valid/wiki.valid.txt", "validation": "5%"},
            },
            steps=12, batch_size=4,
        ),
        Work(
            "minilm-probe", "MiniLM, a linear head on frozen features, 5,000 sentences", "probe",
            {"model": "minilm", "data": SST2, "method": "linear_probe", "train": {"learning_rate": 0.3}},
            steps=156, batch_size=32,
        ),
        Work(
            "predict", "MiniLM trained on sst2, classes of 2,048 sentences", "predict",
            {"model": "minilm", "data": SST2, "method": "full", "train": {"learning_rate": 1e-4}},
            steps=64, batch_size=32,
        ),
    )
}  # fmt: skip
