"""How an encoder-decoder writes: the generation config that settings mean, beside what the model itself needs to begin and to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.data.collate import IGNORED
from tunesmith.spec import BeamSearchSpec

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from tunesmith.models.token_loss import TokenScores

OWN = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""What stays of a model's generation config. `forced_eos_token_id` does not: it makes an answer that was cut look ended."""


def writing_config(model: Any, settings: BeamSearchSpec) -> GenerationConfig:
    """The generation config of a model that writes as the settings say."""
    from transformers import GenerationConfig

    own = {name: getattr(model.generation_config, name, None) for name in OWN}
    return GenerationConfig(
        **{name: value for name, value in own.items() if value is not None}, **settings.model_dump(), do_sample=False, use_cache=True
    )


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """What the decoder reads while it learns labels [rows, tokens] (-100 is padding): these, shifted by the model's own rule.

    A model that has none for callers (M2M) shifts them itself, with the token that its decoder starts with in front.
    """
    plain = getattr(model, "module", model)
    plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
    if hasattr(plain, "prepare_decoder_input_ids_from_labels"):
        shifted: torch.Tensor = plain.prepare_decoder_input_ids_from_labels(labels=labels)
        return shifted
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = plain.config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED, plain.config.pad_token_id)


def score_targets(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> TokenScores:
    """Scores of every token of the targets [rows, longest] (-100 where there is padding) of an encoder-decoder."""
    from tunesmith.models.token_loss import score_tokens

    read = {"decoder_input_ids": decoder_inputs(model, labels), "decoder_attention_mask": (labels != IGNORED).long()}
    return score_tokens(model, {**inputs, **read}, labels, shifted=False)
