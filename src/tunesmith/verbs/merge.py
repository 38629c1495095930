"""`merge`: adapters folded into the base model, loaded afresh and never quantised; and the proof that nothing else changed."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError, RunError
from tunesmith.models.load import load_trained, take_generation_config
from tunesmith.models.remote_code import copy_code, is_trusted
from tunesmith.models.save import card_code, write_card
from tunesmith.registry import METHODS, TASKS
from tunesmith.runs.progress import Progress
from tunesmith.verbs.prove import reload_model_in_fresh_process, target_request, token_request, vector_request
from tunesmith.verbs.run import Run

if TYPE_CHECKING:
    import torch

TOLERANCES = {"fp32": (1e-4, 1e-6), "bf16": (0.1, 1e-2)}
"""Of each precision, the largest logit difference allowed, times the largest logit if that is above 1, and the largest mean KL
divergence in nats: what rounding the merged weights explains, not another model."""


def merge(run: Run, out: str | Path, *, dtype: str = "fp32", quiet: bool = False) -> dict[str, Any]:
    """Writes base and adapters as one model to `out`, with tokenizer, template, generation config and card; returns the proof.

    `dtype` is that of the weights written, `fp32` or `bf16`. Raises InputError when there is nothing to merge or the folder exists;
    RunError when the merged model, loaded in a fresh process, does not compute what base and adapters compute there: then nothing
    stands at `out`.
    """
    method, task = METHODS.get(run.spec.method.name), TASKS.get(run.spec.task.name)
    out = Path(out)
    if method.merge is None:
        fix = f"copy {run.directory.model}: it is a whole model already"
        raise InputError("usage.argument", f"a model trained with method {method.name} has nothing to merge", found=method.name, fix=fix)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("usage.output_exists", "the folder exists and is not empty", where=str(out), fix="give another --out")
    if not out.parent.is_dir():
        raise InputError("usage.output_exists", "there is no such folder", where=str(out.parent), fix="make it, or give another --out")
    progress = Progress(quiet)
    held = run.held_rows()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work, progress.activity("merging", 4) as activity:
        folder = Path(work) / "merged"
        source = run.base
        base = load_trained(source, task.auto_model, head=task.head(run.spec.task))
        activity.advance(1)
        merged = method.merge(base, run.directory.model)
        _save(run, merged, dtype, folder, source)
        del base, merged
        activity.advance(1)
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as rows_folder:
            encoded = run.encode(held, Path(rows_folder))
            if task.loader:
                request = vector_request(encoded, task, run.spec.task)
            else:
                ask = target_request if task.writes_target else token_request
                request = {**ask(encoded, task, run.spec.task, run.tokenizer), "hidden": True}
            # both sides in fp32: what is compared is the merge, not how a quantised base rounds
            new_tokens, own = has_new_tokens(run.directory.model), is_trusted(source)
            code = task.loader or card_code(task.auto_model, adapters=True, new_tokens=new_tokens, remote_code=own)
            _, expected = reload_model_in_fresh_process(run.directory.model, {**request, "code": code})
            activity.advance(1)
            code = task.loader or card_code(task.auto_model, remote_code=own)
            _, found = reload_model_in_fresh_process(folder, {**request, "code": code})
        proof = (compare_vectors if task.loader else compare)(expected, found, dtype)
        proof["rows"], proof["num_rows"] = held.split, request.get("num_rows", len(request["ids"]))
        (folder / "proof.json").write_text(json.dumps(proof, indent=2) + "\n", encoding="utf-8")
        activity.advance(1)
        if not proof["proven"]:
            kept = run.path / "merge-proof.json"
            shutil.copyfile(folder / "proof.json", kept)
            raise RunError(
                "run.proof", "the merged model does not compute what base and adapters compute", where=str(kept),
                found="; ".join(proof["problems"]),
                fix="nothing was written; please report this with merge-proof.json",
            )  # fmt: skip
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    return proof


def has_new_tokens(adapters: Path) -> bool:
    """Whether the adapters hold rows for tokens that the base model does not have."""
    return bool(json.loads((adapters / "adapter_config.json").read_text(encoding="utf-8")).get("trainable_token_indices"))


def compare(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], dtype: str) -> dict[str, Any]:
    """The proof: logits [positions, vocabulary] and hidden states [layers, positions, hidden] of both."""
    logits, other = expected["logits"], found["logits"]
    difference = float((logits - other).abs().max())
    agreement = float((logits.argmax(-1) == other.argmax(-1)).double().mean())
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    allowed, most_divergence = TOLERANCES[dtype][0] * max(float(logits.abs().max()), 1.0), TOLERANCES[dtype][1]
    problems = []
    if not difference <= allowed:
        problems.append(f"logits differ by up to {difference:.3g} ({allowed:.3g} allowed)")
    if not divergence <= most_divergence:
        problems.append(f"the mean KL divergence is {divergence:.3g} ({most_divergence:.3g} allowed)")
    states, others = expected["hidden"].double(), found["hidden"].double()
    drift = (states - others).norm(dim=-1).mean(-1) / states.norm(dim=-1).mean(-1).clamp_min(1e-12)
    growth = drift.diff(prepend=drift.new_zeros(1))
    layer = int(growth.argmax())
    most_different = "the embeddings" if layer == 0 else f"block {layer - 1}"
    if problems:
        problems.append(f"{most_different} differs most")
    return {
        "proven": not problems,
        "what": "the merged model against base and adapters in fp32, both loaded in a fresh process",
        "dtype": dtype,
        "num_positions": len(logits),
        "largest_logit_difference": difference,
        "largest_difference_allowed": allowed,
        "top_1_agreement": agreement,
        "mean_kl_divergence": divergence,
        "most_different_layer": most_different,
        "relative_difference_there": float(drift[layer]),
        "problems": problems,
    }


def compare_vectors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], dtype: str) -> dict[str, Any]:
    """The proof: vectors [texts, dimensions] of both."""
    vectors, other = expected["logits"], found["logits"]
    difference, allowed = float((vectors - other).abs().max()), TOLERANCES[dtype][0] * float(vectors.abs().max())
    problems = [] if difference <= allowed else [f"vectors differ by up to {difference:.3g} ({allowed:.3g} allowed)"]
    return {
        "proven": not problems,
        "what": "the merged model against base and adapters in fp32, both loaded in a fresh process",
        "dtype": dtype,
        "num_texts": len(vectors),
        "largest_logit_difference": difference,
        "largest_difference_allowed": allowed,
        "problems": problems,
    }


def _save(run: Run, model: Any, dtype: str, folder: Path, source: Path) -> None:
    import torch

    task = TASKS.get(run.spec.task.name)
    model = model.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    model.config.use_cache = True
    take_generation_config(model, run.directory.model)
    model.save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    task.finish(run.spec.task, model, run.tokenizer, folder)
    about = {"task": task.summary, "method": f"{METHODS.get(run.spec.method.name).summary}; merged", "weights": dtype}
    name = f"{run.spec.model.name} for {task.name}, merged"
    copy_code(source, folder)
    code = (task.loader or card_code(task.auto_model, remote_code=is_trusted(source))) + task.usage(run.spec.task)
    card = write_card(name, run.spec.model.name, code, {"What it is": about}, [task.name])
    (folder / "README.md").write_text(card, encoding="utf-8")
