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
from tunesmith.data.split import spread
from tunesmith.errors import RunError
from tunesmith.models.outputs import logits_of
from tunesmith.models.placement import on_processor
from tunesmith.models.remote_code import is_trusted
from tunesmith.prepare import Prepared
from tunesmith.registry import Task
from tunesmith.verbs import reload_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

NUM_ROWS = 64
NUM_TOKEN_ROWS = 16
NUM_POSITIONS = 16
NUM_VECTOR_ROWS = 32
TOLERANCE = 1e-5
"""Largest difference allowed, times the largest logit if that is above 1: fp32 sums in another order, not another model."""


def prove_model(prepared: Prepared, code: str, folder: Path, labels: dict[int, str]) -> dict[str, Any]:
    """Compares `folder`, reloaded, with the model in memory on validation rows; returns the proof.

    Raises RunError when the folder cannot be loaded; what differs stands in the proof's problems.
    """
    encoded = prepared.encoded.get("validation", prepared.encoded["train"])
    reads_tokens = prepared.task.per_token or prepared.task.join is not None
    probe = _probe_tokens if reads_tokens else _probe_vectors if prepared.task.loader else _probe_texts
    if prepared.task.writes_target:
        probe = _probe_targets
    with on_processor(prepared.model):  # as the card's code computes
        indices, request, ids, expected = probe(prepared, encoded)
    answer, computed = reload_model_in_fresh_process(folder, {**request, "code": code})
    found = computed["logits"]
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
        "rows": [encoded.place(index) for index in indices[:3]] + ["..."],
        "num_rows": len(indices),
        "same_tokens": answer["ids"] == ids,
        "largest_logit_difference": difference,
        "largest_difference_allowed": allowed,
        "same_argmax": bool((found.argmax(-1) == expected.argmax(-1)).all()) if found.shape == expected.shape else False,
        "problems": problems,
    }


Probe = tuple["np.ndarray", dict[str, Any], list[Any], "torch.Tensor"]
"""Indices of the examples, the request to the fresh process, the token ids and the logits that it should give."""


def _probe_texts(prepared: Prepared, encoded: Encoded) -> Probe:
    """Texts of classification: their tokens, and logits [rows, outputs], a row at a time: a base of 8 bits makes something else of a row
    when there is padding, or another row, beside it."""
    import torch

    indices = spread(len(encoded), NUM_ROWS)
    texts = encoded.sources(indices)
    section: Any = prepared.spec.task
    request = {"texts": texts["text"], "pairs": texts.get("pair"), "max_length": section.max_length}
    columns = encoded.dataset[[int(index) for index in indices]]
    names = [name for name in columns if name in prepared.tokenizer.model_input_names]
    model, logits = prepared.model.eval(), []
    for row in zip(*(columns[name] for name in names), strict=True):
        inputs = {name: torch.tensor([values], device=model.device) for name, values in zip(names, row, strict=True)}
        with torch.inference_mode():
            logits.append(model(**inputs).logits.float().cpu())
    return indices, request, [list(ids) for ids in columns["input_ids"]], torch.cat(logits)


def _probe_vectors(prepared: Prepared, encoded: Encoded) -> Probe:
    """Texts that a model gives vectors for: their tokens, and vectors [texts, dimensions]."""
    import torch

    from tunesmith.data.collate import collate_rows

    indices, task, section = spread(len(encoded), NUM_VECTOR_ROWS), prepared.task, prepared.spec.task
    request = vector_request(encoded, task, section)
    model, vectors = prepared.model.eval(), []
    for index in indices:
        batch = collate_rows(encoded, [index], task, section, int(prepared.tokenizer.pad_token_id))
        with torch.inference_mode():
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            vectors.append(task.forward(section, model, inputs, None)[0].float().cpu())
    return indices, request, request["ids"], torch.cat(vectors)


def vector_request(encoded: Encoded, task: Task, section: Any) -> dict[str, Any]:
    """What a fresh process is asked about a model that gives vectors: the texts of some rows, and their ids."""
    indices = [int(index) for index in spread(len(encoded), NUM_VECTOR_ROWS)]
    sources, columns = encoded.sources(indices), encoded.dataset[indices]
    names = [name for name, kind in task.canonical.items() if kind == "text" and name in sources]
    rows = list(zip(columns["input_ids"], columns["token_type_ids"], strict=True))
    return {
        "vectors_of": [sources[name][row] for row in range(len(indices)) for name in names],
        "ids": [[token for token, owner in zip(*row, strict=True) if owner == number] for row in rows for number in range(len(names))],
        "max_length": section.max_length,
        "num_rows": len(indices),
    }


def _probe_tokens(prepared: Prepared, encoded: Encoded) -> Probe:
    """Token ids, made anew where their source is known, and logits [positions, outputs] at some positions of each example."""
    import torch

    request = token_request(encoded, prepared.task, prepared.spec.task, prepared.tokenizer)
    model, logits = prepared.model.eval(), []
    with torch.inference_mode():
        for row, others, at in zip(request["ids"], request["others"], request["positions"], strict=True):
            inputs = {name: torch.tensor([values], device=model.device) for name, values in {"input_ids": row, **others}.items()}
            logits.append(logits_of(model(**inputs))[0, at].float().cpu())
    return spread(len(encoded), NUM_TOKEN_ROWS), request, request["ids"], torch.cat(logits)


def _probe_targets(prepared: Prepared, encoded: Encoded) -> Probe:
    """Token ids of sources, targets and what the model writes, and logits [positions, vocabulary] at some positions of each target."""
    import torch

    request = target_request(encoded, prepared.task, prepared.spec.task, prepared.tokenizer)
    model = prepared.model.eval()
    rows, logits = reload_model.read_and_write(model, request)
    ids = [[source, target, written] for source, target, written in zip(request["ids"], request["targets"], rows, strict=True)]
    return spread(len(encoded), NUM_TOKEN_ROWS), request, ids, torch.cat(logits)


def target_request(encoded: Encoded, task: Task, section: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a fresh process is asked about an encoder-decoder: ids of sources and targets, their texts, positions of targets."""
    indices = spread(len(encoded), NUM_TOKEN_ROWS)
    columns = encoded.dataset[[int(index) for index in indices]]
    firsts = np.diff(encoded.row, prepend=-1) != 0  # of several targets the first is the one whose text is known
    return {
        "ids": [list(row) for row in columns["input_ids"]],
        "targets": [list(row) for row in columns["labels"]],
        "positions": [spread(len(row), NUM_POSITIONS).tolist() for row in columns["labels"]],
        "sources": [
            task.source(section, encoded.rows.dataset[int(encoded.row[index])], tokenizer) if firsts[index] else None for index in indices
        ],
        "max_source_length": section.max_source_length,
    }


def token_request(encoded: Encoded, task: Task, section: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a fresh process is asked about a model with an answer for each token: ids, what else the model reads, and positions of some
    examples, and the sources that whole rows' tokens are made of."""
    indices = spread(len(encoded), NUM_TOKEN_ROWS)
    columns = encoded.dataset[[int(index) for index in indices]]
    ids = [list(row) for row in columns["input_ids"]]
    others = [name for name in columns if name in tokenizer.model_input_names and name != "input_ids"]
    whole = (encoded.lengths == encoded.full_lengths) & (np.bincount(encoded.row)[encoded.row] == 1)
    sources = [
        task.source(section, encoded.rows.dataset[int(encoded.row[index])], tokenizer) if whole[index] else None for index in indices
    ]
    read = [dict(zip(others, values, strict=True)) for values in zip(*(columns[name] for name in others), strict=True)] or [{}] * len(ids)
    return {"ids": ids, "others": read, "positions": [spread(len(row), NUM_POSITIONS).tolist() for row in ids], "sources": sources}


def reload_model_in_fresh_process(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(token ids and labels, tensors) that the model in `folder` gives, loaded by the code in the request without tunesmith.

    Raises RunError when it cannot be loaded.
    """
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="tunesmith-proof-") as work:
        request_path, logits_path = Path(work) / "request.json", Path(work) / "logits.safetensors"
        about = {"threads": torch.get_num_threads(), "trust_remote_code": is_trusted(folder)}
        request_path.write_text(json.dumps({**request, **about}), encoding="utf-8")
        command = [sys.executable, "-I", str(Path(reload_model.__file__)), str(folder), str(request_path), str(logits_path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
        if done.returncode != 0:
            raise RunError(
                "run.proof", "the saved model cannot be loaded again", where=str(folder),
                found=done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}",
                fix="the checkpoints are intact; please report this with proof.json",
            )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1]), load_file(logits_path)
