"""What tasks share in which a language model predicts tokens: labels, forward pass, loss and meter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.collate import pad_token_labels
from tunesmith.metrics.language_model import METRICS, TokenMeter
from tunesmith.registry import Meter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.models.token_loss import TokenScores


PROBE_TOKENS = 8


def label_tensor(section: Any, labels: Sequence[Any], shape: tuple[int, int]) -> torch.Tensor:
    """Labels [rows, tokens], -100 where there is padding."""
    return pad_token_labels(labels, shape)


def forward(section: Any, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> TokenScores:
    """Scores of every trained token."""
    from tunesmith.models.token_loss import score_tokens

    assert labels is not None
    return score_tokens(model, inputs, labels)


def loss(section: Any, outputs: TokenScores, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """The summed cross-entropy."""
    return outputs.loss


def loss_weight(section: Any, labels: Sequence[Any]) -> float:
    """The number of trained tokens; the first of a row has nothing before it that it could be predicted from.

    At least 1: a text's last block may be a single token, and a step that block alone.
    """
    return float(max(sum(label >= 0 for row in labels for label in row[1:]), 1))


def meter(section: Any) -> Meter:
    """Perplexity and accuracy of tokens."""
    return TokenMeter()


LANGUAGE_MODEL: dict[str, Any] = {
    "default_model": "smollm2",
    "auto_model": "AutoModelForCausalLM",
    "peft_task_type": "CAUSAL_LM",
    "lint": lambda section, batch: (),
    "target": lambda section, cell: None,
    "stratify": lambda section, cells: (["row"] * len(cells), False),
    "head": lambda section: {},
    "label_tensor": label_tensor,
    "forward": forward,
    "loss": loss,
    "loss_weight": loss_weight,
    "meter": meter,
    "metrics": lambda section: METRICS,
    "per_token": True,
    "causal": True,
}
"""What the records of such tasks have in common."""


def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether what a model says at a position changes with a later token, as that of an encoder does: it would read the answers."""
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(PROBE_TOKENS) % vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        one, other = model(input_ids=ids.to(model.device)).logits[:, :-1].float()
    model.train(was_training)
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def decode_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as text to be shown: a space as ␣, a line end as ↵, and a part of a character as the tokenizer writes it."""
    shown = []
    for token_id, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # SentencePiece drops the space before a text, and with it that of a token decoded alone.
        if piece.startswith("▁") or "\ufffd" in text:
            text = piece
        shown.append(text.replace("▁", "␣").replace(" ", "␣").replace("\n", "↵"))
    return shown
