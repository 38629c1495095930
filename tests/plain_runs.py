"""Runs of transformers' Trainer alone, as its documentation uses it, to stand beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import torch
import transformers
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from kills import Subject
from tiny_models import texts_and_labels


def plain(model: Path) -> Subject:
    """Trainer on the same rows, which goes on from the last checkpoint that it finds."""
    texts, labels = texts_and_labels(128)
    names = sorted(set(labels))

    def go(run: Path) -> None:
        if (run / "result.json").is_file():
            return
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        transformers.set_seed(0)
        rows = [{**tokenizer(text), "label": names.index(label)} for text, label in zip(texts, labels, strict=True)]
        rows = datasets.Dataset.from_list(rows)
        arguments = transformers.TrainingArguments(
            output_dir=str(run / "checkpoints"), num_train_epochs=2, per_device_train_batch_size=16, learning_rate=1e-3, save_steps=3,
            save_strategy="steps", eval_strategy="steps", eval_steps=3, logging_steps=2, save_total_limit=2, load_best_model_at_end=True,
            seed=0, use_cpu=True, disable_tqdm=True, report_to="none",
        )  # fmt: skip
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names))
        engine = transformers.Trainer(
            model=classifier, args=arguments, train_dataset=rows, eval_dataset=rows.select(range(32)), processing_class=tokenizer
        )
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        engine.train(resume_from_checkpoint=get_last_checkpoint(str(run / "checkpoints")))
        engine.save_model(str(run / "model"))
        (run / "result.json").write_text(json.dumps(engine.state.global_step))

    return Subject("plain Trainer", go, _differing, _is_complete, _is_saving)


def _differing(straight: Path, run: Path) -> list[str]:
    tensors = [load_file(folder / "model/model.safetensors") for folder in (straight, run)]
    return [] if all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]) else ["model.safetensors"]


def _is_complete(checkpoint: Path) -> bool:
    try:
        loaded = load_file(checkpoint / "model.safetensors"), torch.load(checkpoint / "optimizer.pt", weights_only=True)
    except Exception:  # whatever it says: it is not whole
        return False
    return all(loaded) and (checkpoint / "trainer_state.json").is_file()


def _is_saving(run: Path) -> bool:
    return any(not (checkpoint / "trainer_state.json").is_file() for checkpoint in (run / "checkpoints").glob("checkpoint-*"))
