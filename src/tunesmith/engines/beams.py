"""Writing by encoder-decoders: sources in, texts out, as the model's own `generate` writes with the generation config that is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.data.collate import IGNORED
from tunesmith.data.plan import cut_by_length
from tunesmith.engines.generation import Generated, check_lengths, plain_writer
from tunesmith.engines.scoring import autocast
from tunesmith.models.writing import score_targets, writing_config
from tunesmith.spec import BeamSearchSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[list[int]],
    settings: BeamSearchSpec,
    precision: str = "fp32",
    rows_per_batch: int = 32,
    advance: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[int, Generated]]:
    """(index of the source, its answer) as batches of sources of similar length finish, longest first.

    Raises InputError when a source is empty, or longer than the model reads.
    """
    check_lengths(model, tokenizer, sources, 0)
    lengths = [len(source) for source in sources]
    config = writing_config(model, settings)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    rows_at_once = max(rows_per_batch // settings.num_beams, 1)
    for part in cut_by_length(lengths, rows_at_once * max(lengths, default=0), rows_at_once):
        rows = [int(index) for index in part]
        inputs = _padded([sources[row] for row in rows], model)
        with plain_writer(model, config) as writer, torch.inference_mode(), autocast(model, precision):
            written = writer.generate(**inputs)[:, 1:].tolist()
        answers = [_until_end(ids, ends) for ids in written]
        scores = _scores(model, inputs, answers, precision)
        for row, ids, score in zip(rows, answers, scores, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            yield row, Generated(text, len(ids), bool(ids) and ids[-1] in ends, score)
        advance(len(rows))


def _padded(sources: Sequence[list[int]], model: Any) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [rows, longest source]."""
    longest, pad = max(map(len, sources)), model.config.pad_token_id
    ids = torch.tensor([source + [pad] * (longest - len(source)) for source in sources], device=model.device)
    mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources], device=model.device)
    return {"input_ids": ids, "attention_mask": mask}


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """What was written, with its end; `generate` fills up what follows."""
    return ids[: next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))]


def _scores(model: Any, inputs: dict[str, torch.Tensor], answers: Sequence[list[int]], precision: str) -> list[float]:
    """The mean probability (geometric) that the model gives each answer's tokens."""
    longest = max(map(len, answers))
    labels = torch.tensor([ids + [IGNORED] * (longest - len(ids)) for ids in answers], device=model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(model, precision):
            losses = score_targets(model, inputs, labels).losses
    finally:
        model.train(was_training)
    return [float((-part.float().mean()).exp()) for part in losses.split_with_sizes([len(ids) for ids in answers])]
