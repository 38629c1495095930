"""What the model reads, learns and answers: encoding, loss, prompts, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.collate import LENGTH_MULTIPLE, pad_token_labels
from tunesmith.errors import InputError
from tunesmith.metrics.generation import REPORTS
from tunesmith.metrics.language_model import METRICS
from tunesmith.models.load import ensure_pad_token, has_package, require_package
from tunesmith.models.writing import decoder_inputs, score_targets, writing_config
from tunesmith.registry import Decision
from tunesmith.tasks.seq2seq.languages import fit_languages, set_languages
from tunesmith.tasks.seq2seq.section import Seq2SeqSpec

if TYPE_CHECKING:
    import torch

    from tunesmith.models.token_loss import TokenScores

GENERATED_IN_TRAINING = 200
FEW_WORDS = 5
PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}
ENDS = 2
"""Of so many last tokens of a target one must be an end: mBART puts the language after it."""


def decide(section: Seq2SeqSpec, facts: Any) -> list[Decision]:
    """The metrics, and how many rows they are computed of in training.

    Raises InputError when a metric needs what is not installed.
    """
    decisions = []
    metrics: Any = section.metrics
    if metrics == "auto":
        metrics, because = _usual_metrics(section, facts)
        missing = [name for name in metrics if name in PACKAGES and not has_package(PACKAGES[name])]
        if missing:
            metrics, because = ["exact_match"], f"{', '.join(missing)} would need pip install 'tunesmith[eval]'"
        decisions.append(Decision("task.metrics", metrics, because))
    for name in metrics:
        if name in PACKAGES:
            require_package(PACKAGES[name], "eval")
    if section.num_generated_in_training == "auto":
        because = "as many answers, evenly spread, tell checkpoints apart in little time; all are written at the end"
        decisions.append(Decision("task.num_generated_in_training", GENERATED_IN_TRAINING if metrics else 0, because))
    return decisions


def _usual_metrics(section: Seq2SeqSpec, facts: Any) -> tuple[list[str], str]:
    if section._rows_have_languages:
        return ["bleu", "chrf"], "the usual ones of translation"
    cells = [row.get(facts.columns.get("target", "")) for row in facts.sample]
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell]) if isinstance(text, str)]
    words = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    if words <= FEW_WORDS:
        return ["exact_match", "chrf"], f"targets have {words:.1f} words on average"
    return ["rouge"], f"the usual one of summaries; targets have {words:.0f} words on average"


def metrics(section: Seq2SeqSpec) -> dict[str, bool]:
    """Those of written answers first, when any are written in training."""
    names = [name for metric in section.metrics for name in REPORTS[metric]] if section.metrics != "auto" else []
    written = dict.fromkeys((*names, "ended"), True) if section.num_generated_in_training and names else {}
    return {**written, **METRICS}


def fit_tokenizer(section: Seq2SeqSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token and languages; refuses a tokenizer that does not end a target: the model would never learn to stop."""
    import torch

    decisions = [*ensure_pad_token(tokenizer, model), *fit_languages(section, tokenizer, model)]
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    labels = tokenizer(text_target=["a"])["input_ids"][0]
    if not ends & set(labels[-ENDS:]):
        found = f"a target ends with {tokenizer.convert_ids_to_tokens(labels[-1:])}"
        fix = "save the tokenizer with a post-processor that puts its end token after a text"
        raise InputError("model.tokenizer", "the tokenizer does not end a target: the model would not learn to stop", found=found, fix=fix)
    # Writing begins with what the decoder reads first while it learns.
    model.generation_config.decoder_start_token_id = int(decoder_inputs(model, torch.tensor([labels]))[0, 0])
    return decisions


def encode_sources(section: Seq2SeqSpec, texts: Sequence[str], tokenizer: Any, max_length: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of each source, cut so that what the tokenizer puts after a text stays, and how many there were."""
    set_languages(section, tokenizer)
    prefixed = [section.prefix + text for text in texts]
    ids = [list(row) for row in tokenizer(prefixed, truncation=False, padding=False, verbose=False)["input_ids"]]
    lengths = [len(row) for row in ids]
    for index in [index for index, length in enumerate(lengths) if length > max_length]:
        ids[index] = list(tokenizer(prefixed[index], truncation=True, max_length=max_length)["input_ids"])
    return ids, lengths


def encode(section: Seq2SeqSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Token ids of sources and, where there are any, of targets; each of several targets is an example where the section says so."""
    ids, lengths = encode_sources(section, batch["text"], tokenizer, max_length)
    if "label" not in batch:
        return {"input_ids": ids, "full_length": lengths, "fault": [None] * len(ids), "row": list(range(len(ids)))}
    learnt = [targets if section.targets == "each" else targets[:1] for targets in batch["label"]]
    row = [number for number, targets in enumerate(learnt) for _ in targets]
    texts = [target for targets in learnt for target in targets]
    labels = [list(found) for found in tokenizer(text_target=texts, truncation=False, padding=False, verbose=False)["input_ids"]]
    most = None if section.max_target_length == "auto" else section.max_target_length
    return {
        "input_ids": [ids[number] for number in row],
        # the end of what is cut is cut too: where a text breaks off nobody should learn to stop
        "labels": [found[:most] for found in labels],
        "full_length": [lengths[number] for number in row],
        "full_label_length": [len(found) for found in labels],
        "fault": [None] * len(row),
        "row": row,
    }


def label_tensor(section: Any, labels: Sequence[Sequence[int]], shape: tuple[int, int]) -> torch.Tensor:
    """Labels [rows, longest target], -100 where there is padding; as wide as targets are, not as sources."""
    longest = -(-max(map(len, labels)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return pad_token_labels(labels, (len(labels), longest))


def forward(section: Any, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> TokenScores:
    """Scores of every token of the targets."""
    assert labels is not None
    return score_targets(model, inputs, labels)


def loss_weight(section: Any, labels: Sequence[Sequence[int]]) -> float:
    """The number of tokens of the targets."""
    return float(sum(label >= 0 for row in labels for label in row))


def prompt(section: Seq2SeqSpec, batch: dict[str, list[Any]], tokenizer: Any) -> list[tuple[list[int], list[str] | None]]:
    """Token ids of each source, and all its targets."""
    ids, _ = encode_sources(section, batch["text"], tokenizer, int(section.max_source_length))
    return list(zip(ids, batch.get("label", [None] * len(ids)), strict=True))


def settle(section: Seq2SeqSpec, tokenizer: Any, model: Any) -> None:
    """Gives the model the settings of writing as its own, and the tokenizer the longest source."""
    tokenizer.model_max_length = max(tokenizer.model_max_length, int(section.max_source_length))
    model.generation_config = writing_config(model, section.generation)


def source(section: Seq2SeqSpec, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The texts that plain transformers makes tokens of."""
    return {"text": section.prefix + row["text"], "target": row["label"][0]}


def answered(section: Any, row: dict[str, Any], written: Any) -> dict[str, Any]:
    """A source and what was written of it."""
    return {
        "source": row["text"],
        "prediction": written.text,
        "num_tokens": written.num_tokens,
        "finished": written.finished,
        "score": written.score,
    }
