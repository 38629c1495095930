"""Quality beside plain Trainer: the same model, rows, hyper-parameters and seeds, each trained by tunesmith and by a plain script.

    python -m bench.quality examples/sst2.yaml --seeds 0 1 2 --out quality.jsonl data.root=FOLDER

The plain script is what one would write by hand: padded batches in random order, `Trainer`, its own loss. Both keep the best epoch by
the same validation metric. One JSON object a run is appended to --out; `--table FILE` prints what was gathered.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

import tunesmith
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of


@dataclass(frozen=True)
class Plain:
    """What a script for one task is made of, beside `Trainer`."""

    model: Any
    rows: Callable[[str], list[dict[str, Any]]]
    """(split) -> tokenized rows with labels."""
    score: Callable[[Any], dict[str, float]]
    """(predictions and labels of the validation rows) -> metrics."""
    collator: Any = None


def texts(prepared: Prepared, tokenizer: Any) -> Plain:
    """Text classification as transformers' run_classification.py has it."""
    section: Any = prepared.spec.task
    head = prepared.task.head(section)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(prepared.files.path, dtype=torch.float32, **head)

    def rows(split: str) -> list[dict[str, Any]]:
        encoded_rows = prepared.encoded[split]
        rows = encoded_rows.rows.dataset.select(encoded_rows.row)
        labels = prepared.encoded[split].dataset["labels"]
        texts = [list(rows["text"]), *([list(rows["pair"])] if "pair" in rows.column_names else [])]
        encoded = tokenizer(*texts, truncation=True, max_length=section.max_length)
        multi = section.problem_type == "multi_label_classification"
        values = [[float(value) for value in label] if multi else label for label in labels]
        return [{**{name: encoded[name][index] for name in encoded}, "labels": values[index]} for index in range(len(values))]

    def score(prediction: Any) -> dict[str, float]:
        meter = prepared.task.meter(section)
        meter.update(torch.tensor(prediction.predictions), torch.tensor(np.asarray(prediction.label_ids)), None)
        return dict(meter.compute(intervals=False)["metrics"])

    return Plain(model, rows, score)


def tokens(prepared: Prepared, tokenizer: Any) -> Plain:
    """Token classification as transformers' run_ner.py has it; the data's tags must be those of the model."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    section: Any = prepared.spec.task
    names = list(section.labels)
    head = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        prepared.files.path, dtype=torch.float32, num_labels=len(names), **head
    )

    def rows(split: str) -> list[dict[str, Any]]:
        rows = prepared.data.rows[split].dataset
        encoded = tokenizer(list(rows["words"]), truncation=True, max_length=section.max_length, is_split_into_words=True)
        found = []
        for index, tags in enumerate(rows["label"]):
            labels, before = [], None
            for word in encoded.word_ids(index):
                labels.append(-100 if word is None or word == before else head["label2id"][tags[word]])
                before = word
            found.append({**{name: encoded[name][index] for name in encoded}, "labels": labels})
        return found

    def score(prediction: Any) -> dict[str, float]:
        guesses = prediction.predictions.argmax(-1)
        kept = [label >= 0 for label in prediction.label_ids]
        guessed = [[names[index] for index in guess[mask]] for guess, mask in zip(guesses, kept, strict=True)]
        true = [[names[index] for index in label[mask]] for label, mask in zip(prediction.label_ids, kept, strict=True)]
        accuracy = float((guesses == prediction.label_ids)[prediction.label_ids >= 0].mean())
        if section.scheme == "none":
            return {"accuracy": accuracy}
        functions = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
        return {"accuracy": accuracy, **{name: float(function(true, guessed)) for name, function in functions.items()}}

    return Plain(model, rows, score, transformers.DataCollatorForTokenClassification(tokenizer))


def vectors(prepared: Prepared, folder: str) -> dict[str, float]:
    """Embedding as a script of sentence-transformers has it: SentenceTransformerTrainer, its loss with its own defaults, padded batches in
    random order, the best epoch kept."""
    import sentence_transformers
    from sentence_transformers.base.evaluation import BaseEvaluator
    from sentence_transformers.sentence_transformer import losses

    section: Any = prepared.spec.task
    train, best = prepared.spec.train, str(prepared.spec.train.metric_for_best_model)
    names = [name for name in ("text", "pair", "negative") if name in prepared.data.rows["train"].dataset.column_names]
    kinds = {
        "multiple_negatives_ranking": losses.MultipleNegativesRankingLoss, "cosine_similarity": losses.CosineSimilarityLoss,
        "cosent": losses.CoSENTLoss, "angle": losses.AnglELoss, "triplet": losses.TripletLoss, "contrastive": losses.ContrastiveLoss,
        "online_contrastive": losses.OnlineContrastiveLoss,
    }  # fmt: skip

    class Evaluator(BaseEvaluator):  # type: ignore[misc]
        """tunesmith's metrics of what `encode` gives."""

        def __call__(self, model: Any, *arguments: Any, **others: Any) -> dict[str, float]:
            columns = prepared.data.rows["validation"].dataset[:]
            found = torch.stack([model.encode(columns[name], convert_to_tensor=True).cpu() for name in names], dim=1)
            meter = prepared.task.meter(section)
            labels = torch.tensor(prepared.encoded["validation"].dataset["labels"][:])
            meter.update(found, labels, SimpleNamespace(sources=lambda: columns))
            return dict(meter.compute(intervals=False)["metrics"])

    rows = prepared.data.rows["train"].dataset.select_columns(names)
    if section.score_range != "none" or section.examples == "labelled_pairs":
        rows = rows.add_column("label", prepared.encoded["train"].dataset["labels"][:])
    model = sentence_transformers.SentenceTransformer(str(prepared.files.path), device="cpu")
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=folder, num_train_epochs=float(train.epochs), max_steps=train.max_steps if train.max_steps != "none" else -1,
        per_device_train_batch_size=train.batch_size, learning_rate=float(train.learning_rate), lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps, weight_decay=train.weight_decay, seed=train.seed, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model=best, greater_is_better=True, save_total_limit=1, bf16=train.precision == "bf16",
        use_cpu=True, disable_tqdm=True, batch_sampler="no_duplicates" if section.no_duplicates else "batch_sampler",
    )  # fmt: skip
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model, arguments, train_dataset=rows, loss=kinds[str(section.loss)](model), evaluator=Evaluator()
    )
    trainer.train()
    return Evaluator()(model)


PLAIN: dict[str, Callable[[Prepared, Any], Plain]] = {"text_classification": texts, "token_classification": tokens}


def train_plain(prepared: Prepared, folder: str) -> dict[str, float]:
    """Fine-tunes with transformers alone on the prepared rows; returns validation metrics."""
    train = prepared.spec.train
    transformers.set_seed(train.seed)
    if prepared.task.name == "embedding":
        return vectors(prepared, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.files.path)
    plain = PLAIN[prepared.task.name](prepared, tokenizer)
    arguments = transformers.TrainingArguments(
        output_dir=folder, num_train_epochs=float(train.epochs), per_device_train_batch_size=train.batch_size, learning_rate=float(train.learning_rate),
        lr_scheduler_type=train.lr_scheduler_type, warmup_steps=train.warmup_steps, weight_decay=train.weight_decay, seed=train.seed,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model=str(train.metric_for_best_model),
        greater_is_better=True, save_total_limit=1, bf16=train.precision == "bf16", use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=64,
    )  # fmt: skip
    trainer = transformers.Trainer(
        plain.model,
        arguments,
        data_collator=plain.collator,
        train_dataset=plain.rows("train"),
        eval_dataset=plain.rows("validation"),
        processing_class=tokenizer,
        compute_metrics=plain.score,
    )
    trainer.train()
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


def run(spec_path: str, overrides: list[str], seed: int) -> list[dict[str, Any]]:
    """One seed, by both."""
    results = []
    settings = [*overrides, f"train.seed={seed}"]
    spec = spec_of(spec_path, settings)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepared = prepare(spec)
        metrics = train_plain(prepared, f"{folder}/plain")
        results.append({"by": "plain Trainer", "metrics": metrics, "seconds": time.perf_counter() - start})
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = tunesmith.train(spec, run=f"{folder}/run", quiet=True)
        results.append({"by": "tunesmith", "metrics": done.result["validation"], "seconds": time.perf_counter() - start})
    return [
        {"spec": Path(spec_path).stem, "seed": seed, "settings": overrides, "best_by": prepared.spec.train.metric_for_best_model, **result}
        for result in results
    ]


def print_table(path: str) -> None:
    """Mean and range over seeds, as Markdown."""
    runs = [json.loads(line) for line in Path(path).read_text().splitlines()]
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in runs:
        groups[item["spec"], item["best_by"]][item["by"]].append(item["metrics"][item["best_by"]])
    print("| spec | metric | seeds | plain Trainer | tunesmith |\n|---|---|---|---|---|")
    for (spec, metric), values in groups.items():
        shown = [
            f"{statistics.mean(found):.4f} ({min(found):.4f}-{max(found):.4f})" for found in (values["plain Trainer"], values["tunesmith"])
        ]
        print(f"| {spec} | {metric} | {len(values['tunesmith'])} | {shown[0]} | {shown[1]} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="quality.jsonl")
    parser.add_argument("--table", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.table:
        print_table(arguments.table)
        return
    transformers.logging.set_verbosity_error()
    for seed in arguments.seeds:
        for result in run(arguments.spec, arguments.overrides, seed):
            with Path(arguments.out).open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result["spec"], result["by"], seed, result["metrics"][result["best_by"]], f"{result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
