"""What the model reads, learns and answers: encoding, head, loss, metrics, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.metrics.classification import ClassMeter, MultiLabelMeter, RegressionMeter
from tunesmith.models.load import ensure_pad_token
from tunesmith.registry import Decision, Meter
from tunesmith.tasks.text_classification.cells import cell_labels
from tunesmith.tasks.text_classification.section import MULTI, REGRESSION, SINGLE, TextClassificationSpec

if TYPE_CHECKING:
    import torch


UNKNOWN_FIX = "the tokenizer knows none of its characters: correct or remove the row"


def fit_tokenizer(section: TextClassificationSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token, where the tokenizer has none."""
    return ensure_pad_token(tokenizer, model)


def encode(section: TextClassificationSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """input_ids, token_type_ids where there are two texts, labels, full_length (tokens before the cut), and the fault of a row
    of whose text the tokenizer knows nothing."""
    texts, pairs = batch["text"], batch.get("pair")
    tokens = tokenizer(texts, pairs, truncation=False, padding=False, verbose=False)
    names = ["input_ids"] + (["token_type_ids"] if pairs is not None and "token_type_ids" in tokens else [])
    columns: dict[str, list[Any]] = {name: list(tokens[name]) for name in names}
    columns["full_length"] = [len(ids) for ids in columns["input_ids"]]
    for row, length in enumerate(columns["full_length"]):
        if length > max_length:
            cut = tokenizer(texts[row], pairs[row] if pairs is not None else None, truncation=True, max_length=max_length, padding=False)
            for name in names:
                columns[name][row] = list(cut[name])
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    columns["fault"] = [
        ("data.empty_text", "the text has no token", repr(text)[:80], UNKNOWN_FIX) if length <= special else None
        for text, length in zip(texts, columns["full_length"], strict=True)
    ]
    if "label" in batch:
        columns["labels"] = [encode_label(section, cell) for cell in batch["label"]]
    return columns


def encode_label(section: TextClassificationSpec, cell: Sequence[str]) -> Any:
    """A class id, a list of 0 and 1 for each label, or a number."""
    if section.problem_type == REGRESSION:
        return float(cell[0])
    ids = [section.labels.index(label) for label in cell_labels(section, cell) or ()]
    if section.problem_type == SINGLE:
        return ids[0]
    return [int(index in ids) for index in range(len(section.labels))]


def head(section: TextClassificationSpec) -> dict[str, Any]:
    """Size, kind and label names of the classification head."""
    if section.problem_type == REGRESSION:
        return {"num_labels": 1, "problem_type": REGRESSION}
    names = dict(enumerate(section.labels))
    return {
        "num_labels": len(names),
        "problem_type": section.problem_type,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }


def label_tensor(section: TextClassificationSpec, labels: Sequence[Any], shape: tuple[int, int]) -> torch.Tensor:
    """Class ids [batch], or 0 and 1 as floats [batch, labels], or numbers [batch]."""
    import torch

    return torch.tensor(labels, dtype=torch.long if section.problem_type == SINGLE else torch.float32)


def forward(section: TextClassificationSpec, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
    """Logits [batch, outputs] in fp32."""
    return model(**inputs).logits.float()  # type: ignore[no-any-return]


def weights_of(section: TextClassificationSpec) -> torch.Tensor | None:
    """Class weights [classes] in fp32, or None."""
    import torch

    return torch.tensor([section.class_weights[label] for label in section.labels]) if isinstance(section.class_weights, dict) else None


def loss(section: TextClassificationSpec, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Sum over the batch of cross-entropy, of binary cross-entropy averaged over labels, or of squared error; in fp32."""
    import torch.nn.functional as F  # noqa: N812

    logits = logits.float()
    weights = weights_of(section)
    weights = weights.to(logits.device) if weights is not None else None
    if section.problem_type == SINGLE:
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="sum")
    if section.problem_type == MULTI:
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="sum") / logits.shape[-1]
    return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


def loss_weight(section: TextClassificationSpec, labels: Sequence[Any]) -> float:
    """The number of rows, or the sum of their class weights (as torch's weighted mean divides)."""
    weights = weights_of(section)
    if section.problem_type != SINGLE or weights is None:
        return float(len(labels))
    return float(weights[list(labels)].sum())


def meter(section: TextClassificationSpec, thresholds: Sequence[float] | None = None) -> Meter:
    """A meter of the kind of problem; thresholds are for several labels."""
    if section.problem_type == REGRESSION:
        return RegressionMeter()
    return ClassMeter(section.labels) if section.problem_type == SINGLE else MultiLabelMeter(section.labels, thresholds)


def metrics(section: TextClassificationSpec) -> dict[str, bool]:
    """What each kind of problem reports, and whether greater is better."""
    names = {
        SINGLE: ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc"),
        MULTI: ("micro_f1", "macro_f1", "weighted_f1", "subset_accuracy", "lrap"),
        REGRESSION: ("spearman", "pearson", "mae", "rmse"),
    }[str(section.problem_type)]
    return {name: name not in ("mae", "rmse") for name in names}


def outputs(section: TextClassificationSpec, logits: torch.Tensor, tuned: dict[str, Any], examples: Any = None) -> list[dict[str, Any]]:
    """`{label, score, scores}`, `{labels, scores}` or `{value}` for each row of logits [batch, outputs]."""
    logits = logits.float()
    if section.problem_type == REGRESSION:
        return [{"value": value} for value in logits.flatten().tolist()]
    names = list(section.labels)
    if section.problem_type == SINGLE:
        rows = logits.softmax(-1).tolist()
        best = logits.argmax(-1).tolist()
        return [
            {"label": names[index], "score": row[index], "scores": dict(zip(names, row, strict=True))}
            for index, row in zip(best, rows, strict=True)
        ]
    thresholds = tuned.get("thresholds") or [0.5] * len(names)
    scored = [dict(zip(names, row, strict=True)) for row in logits.sigmoid().tolist()]
    return [
        {"labels": [name for name, limit in zip(names, thresholds, strict=True) if row[name] >= limit], "scores": row} for row in scored
    ]
