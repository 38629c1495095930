"""The proof: the saved model, loaded in a fresh process without tunesmith, computes what the model in memory computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.encode import Encoded
from tunesmith.errors import RunError
from tunesmith.prepare import Prepared
from tunesmith.verbs import reload_model

if TYPE_CHECKING:
    import torch

NUM_ROWS = 64
ROWS_PER_BATCH = 8
TOLERANCE = 1e-5
"""Largest difference allowed, times the largest logit if that is above 1: fp32 sums in another order, not another model."""


def prove_model(prepared: Prepared, code: str, folder: Path, labels: dict[int, str]) -> dict[str, Any]:
    """Compares `folder`, reloaded, with the model in memory on validation rows; returns the proof.

    Raises RunError when tokens, labels or logits differ; the error carries what the proof says.
    """
    encoded = prepared.encoded.get("validation", prepared.encoded["train"])
    indices = np.linspace(0, len(encoded) - 1, min(NUM_ROWS, len(encoded))).astype(int)
    expected = _logits_in_memory(prepared, encoded, indices)
    rows = encoded.rows.dataset[[int(index) for index in indices]]
    section: Any = prepared.spec.task
    import torch

    request = {
        "code": code, "texts": rows["text"], "pairs": rows.get("pair"), "max_length": section.max_length,
        "rows_per_batch": ROWS_PER_BATCH, "threads": torch.get_num_threads(),
    }  # fmt: skip
    answer, found = _reload(folder, request)
    ids = [list(row) for row in encoded.dataset[[int(index) for index in indices]]["input_ids"]]
    problems = []
    if answer["ids"] != ids:
        problems.append(f"{sum(a != b for a, b in zip(answer['ids'], ids, strict=True))} rows have other tokens")
    if labels and {int(index): label for index, label in answer["labels"].items()} != labels:
        problems.append(f"labels are {answer['labels']}")
    difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")
    allowed = TOLERANCE * max(expected.abs().max().item(), 1.0)
    if not difference <= allowed:
        problems.append(f"logits differ by up to {difference:.3g} ({allowed:.3g} allowed)")
    return {
        "proven": not problems,
        "what": "model and tokenizer, loaded in a fresh process by the code of the model card, against the model in memory (fp32)",
        "rows": [encoded.rows.place(index) for index in indices[:3]] + ["..."],
        "num_rows": len(indices),
        "same_tokens": answer["ids"] == ids,
        "largest_logit_difference": difference,
        "largest_difference_allowed": allowed,
        "same_argmax": bool((found.argmax(-1) == expected.argmax(-1)).all()) if found.shape == expected.shape else False,
        "problems": problems,
    }


def _logits_in_memory(prepared: Prepared, encoded: Encoded, indices: np.ndarray) -> torch.Tensor:
    import torch

    from tunesmith.data.collate import collate_rows

    model, logits = prepared.model.eval(), []
    for start in range(0, len(indices), ROWS_PER_BATCH):
        part = indices[start : start + ROWS_PER_BATCH]
        batch = collate_rows(encoded, part, prepared.task, prepared.spec.task, int(prepared.tokenizer.pad_token_id))
        batch.pop("labels", None)
        with torch.inference_mode():
            logits.append(model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits.float().cpu())
    return torch.cat(logits)


def _reload(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="tunesmith-proof-") as work:
        request_path, logits_path = Path(work) / "request.json", Path(work) / "logits.safetensors"
        request_path.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-I", str(Path(reload_model.__file__)), str(folder), str(request_path), str(logits_path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
        if done.returncode != 0:
            raise RunError(
                "run.proof", "the saved model cannot be loaded again", where=str(folder),
                found=done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}",
                fix="the checkpoints are intact; please report this with proof.json",
            )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1]), load_file(logits_path)["logits"]
