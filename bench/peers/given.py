"""What every peer is given, and what it gives back: run in the peer's own environment, so nothing here imports tunesmith.

`python -m bench.peers.MODULE REQUEST.json`: the request names the folder of the work, the variant and the file to write the result to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""`input_ids` and `labels` of an example (one class, or one label a token, -100 where none is learnt), perhaps `text`."""


@dataclass(frozen=True)
class Given:
    """A work as plain files: `model/`, `rows.jsonl` in the order of training, `held.jsonl`, `work.json`."""

    folder: Path
    variant: str
    """`shipped` is what one gets by asking for nothing; `tuned` the best that the peer documents for a machine like this."""
    scratch: Path
    """A folder that is gone after the run."""
    out: Path
    settings: dict[str, Any]
    """work.json: name, kind, steps, batch_size, learning_rate, seed, lora, per_token, pad_token_id, max_length, micro_batches, bf16
    (whether products in bf16 are faster than in fp32 on this machine), ..."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def model_path(self) -> str:
        """The weights to start from, with the same new head for everyone."""
        return str(self.folder / "model")

    @property
    def is_tuned(self) -> bool:
        """Whether to run at the peer's best."""
        return self.variant != "shipped"

    @property
    def is_tuned_to_bf16(self) -> bool:
        """Whether its best is in bf16."""
        return self.is_tuned and bool(self.bf16)

    def rows(self, name: str = "rows") -> list[Row]:
        """The rows of training (`rows`), a step after the other, or of evaluation (`held`)."""
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]


def read_request() -> Given:
    """What this process was asked for."""
    request = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(request["folder"])
    settings = json.loads((folder / "work.json").read_text())
    return Given(folder, request["variant"], Path(request["scratch"]), Path(request["out"]), settings)


def collate(rows: list[Row], pad_token_id: int, multiple: int = 1) -> dict[str, Any]:
    """Tensors [rows, longest row], padded on the right, up to a multiple of so many tokens."""
    import torch

    longest = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple

    def padded(name: str, value: int) -> Any:
        return torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in rows])

    labels = padded("labels", -100) if isinstance(rows[0]["labels"], list) else torch.tensor([row["labels"] for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": padded("input_ids", pad_token_id), "attention_mask": mask, "labels": labels}


def load_model(given: Given) -> Any:
    """The model in fp32, with peft's adapters if the work asks for them; the body is frozen for a probe."""
    import torch
    import transformers

    transformers.set_seed(given.seed)
    auto = transformers.AutoModelForCausalLM if given.per_token else transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(given.model_path, dtype=torch.float32)
    model.config.use_cache = False
    if given.lora:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(given))
    if given.kind == "probe":
        model.base_model.requires_grad_(False)
    return model


def lora_config(given: Given) -> Any:
    """peft's configuration of the work's adapters."""
    from peft import LoraConfig

    kind: Any = "CAUSAL_LM" if given.per_token else "SEQ_CLS"
    return LoraConfig(task_type=kind, **given.lora)


def num_trainable(model: Any) -> int:
    """Parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def evaluate(model: Any, given: Given) -> dict[str, float]:
    """Accuracy of classes, or the mean loss of a trained token, on the held rows; where bf16 is faster, in autocast, for everyone."""
    import torch

    rows = sorted(given.rows("held"), key=lambda row: -len(row["input_ids"]))
    size = 2 if given.per_token else 32
    right = total = loss = 0.0
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=given.bf16):
        for start in range(0, len(rows), size):
            batch = collate(rows[start : start + size], given.pad_token_id)
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            if given.per_token:
                loss += float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"))
                total += int((labels[:, 1:] >= 0).sum())
            else:
                right += int((logits.argmax(-1) == labels).sum())
                total += len(labels)
    return {"loss": loss / total} if given.per_token else {"accuracy": right / total}
