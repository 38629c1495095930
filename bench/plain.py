"""Plain scripts: what one would write by hand for a task, after the examples of transformers and sentence-transformers.

Of tunesmith they take what is not in question: the rows of a split, the resolved settings, and metrics that its tests hold equal to
those of seqeval, sacrebleu, rouge-score and SQuAD's evaluator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from tunesmith.metrics import generation
from tunesmith.metrics.question_answering import AnswerMeter
from tunesmith.prepare import Prepared
from tunesmith.tasks.question_answering.rows import NO_ANSWER, parse_answer, references

N_BEST = 20


@dataclass(frozen=True)
class Plain:
    """What a script for one task is made of, beside `Trainer`."""

    model: Any
    rows: Callable[[str], list[dict[str, Any]]]
    """(split) -> tokenized rows with labels."""
    score: Callable[[Any], dict[str, float]]
    """(predictions and labels of the validation rows) -> metrics."""
    collator: Any = None
    kind: str = ""
    """`Seq2Seq` where transformers' `Seq2SeqTrainer` trains."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of TrainingArguments, those that belong to the task."""
    reduced: Any = None
    """(logits, labels) -> what `score` needs of them."""


def load_model(prepared: Prepared, **head: Any) -> Any:
    """The model that the spec names, in fp32, with a head for the task; a new one has weights drawn at random."""
    auto, path = getattr(transformers, prepared.task.auto_model), prepared.files.path
    if prepared.files.is_new:
        return auto.from_config(transformers.AutoConfig.from_pretrained(path, **head))
    return auto.from_pretrained(path, dtype=torch.float32, **head)


def texts(prepared: Prepared, tokenizer: Any) -> Plain:
    """Text classification as transformers' run_classification.py has it."""
    section: Any = prepared.spec.task
    head = prepared.task.head(section)
    model = load_model(prepared, **head)

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
    model = load_model(prepared, num_labels=len(names), **head)

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


def answers(prepared: Prepared, tokenizer: Any) -> Plain:
    """Question answering as transformers' run_qa.py has it: windows with a stride, [CLS] where a window does not hold the answer, the best
    of the pairs of the twenty best starts and ends; the threshold is SQuAD's evaluator's."""
    section: Any = prepared.spec.task
    features: list[tuple[int, int, list[Any]]] = []
    """Of each validation window: its row, the place of [CLS], and where in the context its tokens stand (None outside of it)."""

    def rows(split: str) -> list[dict[str, Any]]:
        data = prepared.data.rows[split].dataset[:]
        encoded = tokenizer(
            data["question"], data["context"], truncation="only_second", max_length=section.max_length, stride=section.stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        names, found = [name for name in tokenizer.model_input_names if name in encoded], []
        features.clear()
        for index, row in enumerate(encoded["overflow_to_sample_mapping"]):
            ids = encoded["input_ids"][index]
            offsets = [
                place if part == 1 else None
                for place, part in zip(encoded["offset_mapping"][index], encoded.sequence_ids(index), strict=True)
            ]
            cls = ids.index(tokenizer.cls_token_id)
            features.append((row, cls, offsets))
            start, end = cls, cls
            if data["label"][row] != [NO_ANSWER]:
                begin, text = parse_answer(data["label"][row][0])
                inside = [token for token, place in enumerate(offsets) if place is not None]
                if offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= begin + len(text):
                    start = max(token for token in inside if offsets[token][0] <= begin)
                    end = min(token for token in inside if offsets[token][1] >= begin + len(text))
            found.append({**{name: encoded[name][index] for name in names}, "start_positions": start, "end_positions": end})
        return found

    def score(prediction: Any) -> dict[str, float]:
        data = prepared.data.rows["validation"].dataset[:]
        best = [(-np.inf, "")] * len(data["label"])
        null = [np.inf] * len(best)
        for start, end, (row, cls, offsets) in zip(*prediction.predictions, features, strict=True):
            null[row] = min(null[row], float(start[cls] + end[cls]))
            firsts, lasts = (np.argsort(logits[: len(offsets)])[-1 : -N_BEST - 1 : -1] for logits in (start, end))
            for first in firsts:
                for last in lasts:
                    if offsets[first] and offsets[last] and first <= last < first + section.max_answer_length:
                        text = data["context"][row][offsets[first][0] : offsets[last][1]]
                        best[row] = max(best[row], (float(start[first] + end[last]), text))
        meter = AnswerMeter(section.null_score_diff_threshold)
        for (highest, text), none, cell in zip(best, null, data["label"], strict=True):
            meter.add(text, none - highest, references(cell))
        return dict(meter.compute(intervals=False)["metrics"])

    return Plain(load_model(prepared), rows, score, arguments={"label_names": ["start_positions", "end_positions"]})


def written(prepared: Prepared, tokenizer: Any) -> Plain:
    """Sequence to sequence as transformers' run_translation.py and run_summarization.py have it: Seq2SeqTrainer, answers generated at each
    evaluation, for all validation rows."""
    section: Any = prepared.spec.task
    model = load_model(prepared)
    model.generation_config.update(**section.generation.model_dump(), max_length=None)

    def rows(split: str) -> list[dict[str, Any]]:
        data = prepared.data.rows[split].dataset[:]
        sources = tokenizer([section.prefix + text for text in data["text"]], truncation=True, max_length=section.max_source_length)
        targets = tokenizer(text_target=[cell[0] for cell in data["label"]], truncation=True, max_length=section.max_target_length)
        names = [name for name in tokenizer.model_input_names if name in sources]
        return [{**{name: sources[name][row] for name in names}, "labels": ids} for row, ids in enumerate(targets["input_ids"])]

    def score(prediction: Any) -> dict[str, float]:
        ids = np.where(prediction.predictions < 0, tokenizer.pad_token_id, prediction.predictions)
        texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        cells = prepared.data.rows["validation"].dataset["label"][:]
        return dict(generation.score(section.metrics, texts, cells, intervals=False)["metrics"])

    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model=model)
    return Plain(model, rows, score, collator, "Seq2Seq", {"predict_with_generate": True})


def blocks(prepared: Prepared, tokenizer: Any) -> Plain:
    """Running text as transformers' run_mlm.py and run_clm.py have it: DataCollatorForLanguageModeling on blocks. The blocks are
    tunesmith's, and in validation so are the hidden tokens: perplexities of other tokens do not compare."""
    section: Any = prepared.spec.task
    masked = prepared.task.name == "masked_lm"
    if masked and section.masking != "tokens":
        raise SystemExit("the plain script hides single tokens: add task.masking=tokens")
    names = ("input_ids", "attention_mask", "token_type_ids")
    hide = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=masked, mlm_probability=section.mlm_probability if masked else None)
    pad = transformers.DataCollatorForTokenClassification(tokenizer)

    def rows(split: str) -> list[dict[str, Any]]:
        encoded = prepared.encoded[split]
        columns = encoded.examples(range(len(encoded))) if split == "validation" else encoded.dataset[:]
        known = [name for name in (*names, *(["labels"] if split == "validation" else [])) if name in columns]
        return [{name: columns[name][row] for name in known} for row in range(len(encoded))]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        return dict((pad if "labels" in batch[0] else hide)(batch))

    def reduced(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss, hits and number of the predicted tokens of each row [rows, 3]."""
        if not masked:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        counted = labels >= 0
        return torch.stack([losses.sum(1), ((logits.argmax(-1) == labels) & counted).sum(1), counted.sum(1)], 1)

    def score(prediction: Any) -> dict[str, float]:
        loss, hits, number = prediction.predictions.sum(0, dtype=np.float64)
        return {"perplexity": float(np.exp(loss / number)), "token_accuracy": float(hits / number)}

    return Plain(load_model(prepared), rows, score, collate, arguments={"remove_unused_columns": False}, reduced=reduced)


def train_vectors(prepared: Prepared, arguments: dict[str, Any], callbacks: list[Any]) -> dict[str, float]:
    """Embedding as a script of sentence-transformers has it: SentenceTransformerTrainer, its loss with its own defaults, padded batches in
    random order; returns validation metrics."""
    import sentence_transformers
    from sentence_transformers.base.evaluation import BaseEvaluator
    from sentence_transformers.sentence_transformer import losses

    section: Any = prepared.spec.task
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
    sampler = "no_duplicates" if section.no_duplicates else "batch_sampler"
    own = sentence_transformers.SentenceTransformerTrainingArguments(**arguments, batch_sampler=sampler)
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model, own, train_dataset=rows, loss=kinds[str(section.loss)](model), evaluator=Evaluator(), callbacks=callbacks
    )
    trainer.train()
    return Evaluator()(model)


PLAIN: dict[str, Callable[[Prepared, Any], Plain]] = {
    "text_classification": texts,
    "token_classification": tokens,
    "question_answering": answers,
    "seq2seq": written,
    "masked_lm": blocks,
    "causal_lm": blocks,
}
"""The scripts that use `Trainer` itself or `Seq2SeqTrainer`."""


def train_plain(prepared: Prepared, folder: str, order: str, callbacks: list[Any]) -> dict[str, float]:
    """Fine-tunes without tunesmith on the prepared rows, in an order of `train_sampling_strategy`; returns validation metrics."""
    train, best = prepared.spec.train, str(prepared.spec.train.metric_for_best_model)
    if prepared.method.name != "full" or train.eval_steps != "epoch":
        raise SystemExit("the plain scripts train all weights, and evaluate after each epoch")
    transformers.set_seed(train.seed)
    arguments: dict[str, Any] = {
        "output_dir": folder, "num_train_epochs": float(train.epochs), "max_steps": -1 if train.max_steps == "none" else train.max_steps,
        "per_device_train_batch_size": train.batch_size, "per_device_eval_batch_size": 64, "learning_rate": float(train.learning_rate),
        "lr_scheduler_type": train.lr_scheduler_type, "warmup_steps": train.warmup_steps, "weight_decay": train.weight_decay, "seed": train.seed,
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1, "metric_for_best_model": best,
        "greater_is_better": {**prepared.task.metrics(prepared.spec.task), "loss": False}[best], "bf16": train.precision == "bf16",
        "use_cpu": True, "disable_tqdm": True, "report_to": "none",
    }  # fmt: skip
    if prepared.task.name == "embedding":
        return train_vectors(prepared, arguments, callbacks)
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.files.path)
    plain = PLAIN[prepared.task.name](prepared, tokenizer)
    trainer = getattr(transformers, f"{plain.kind}Trainer")(
        plain.model,
        getattr(transformers, f"{plain.kind}TrainingArguments")(**arguments, **plain.arguments, train_sampling_strategy=order),
        data_collator=plain.collator,
        train_dataset=plain.rows("train"),
        eval_dataset=plain.rows("validation"),
        processing_class=tokenizer,
        compute_metrics=plain.score,
        preprocess_logits_for_metrics=plain.reduced,
        callbacks=callbacks,
    )
    # With rows grouped by length Trainer evaluates them in another order than that of the rows, which answers are compared with.
    trainer._get_eval_sampler = torch.utils.data.SequentialSampler
    trainer.train()
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
