"""Draws which tokens of an example are hidden, and what stands in their place."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from tunesmith.data.collate import IGNORED
from tunesmith.tasks.masked_lm.section import MaskedLMSpec

MASKED, RANDOM, KEPT = 0, 1, 2
STARTS = "starts_unit"
"""Encoded column: 1 where a token is the first of its word; without the column each token stands for itself."""


def draw(section: MaskedLMSpec, tokenizer: Any, example: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """input_ids as the model sees them, and labels: the ids that were there, -100 where nothing is predicted."""
    ids = np.asarray(example["input_ids"], dtype=np.int64)
    special, mask_id, num_ids = _vocabulary(tokenizer)
    hideable = ~special[ids]
    if STARTS in example:
        starts = np.asarray(example[STARTS], dtype=bool)
        unit = np.cumsum(starts | ~hideable | np.r_[True, ~hideable[:-1]]) - 1
    else:
        unit = np.arange(len(ids))
    if section.masking == "spans":
        hidden, fate_of = _draw_spans(section, unit, hideable, generator)
    else:
        hidden = hideable & (generator.random(len(ids)) < section.mlm_probability)[unit]
        fate_of = np.arange(len(ids))
    shares = (section.mask_replace_prob, section.mask_replace_prob + section.random_replace_prob)
    fate = np.searchsorted(shares, generator.random(len(ids)), side="right")[fate_of]
    random_ids = generator.integers(num_ids, size=len(ids))
    seen = np.where(hidden & (fate == MASKED), mask_id, np.where(hidden & (fate == RANDOM), random_ids, ids))
    return {
        **{name: values for name, values in example.items() if name != STARTS},
        "input_ids": seen,
        "labels": np.where(hidden, ids, IGNORED),
    }


def _draw_spans(
    section: MaskedLMSpec, unit: np.ndarray, hideable: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(whether each token is hidden, position of the first token of its span, or its own)."""
    hidden, span = np.zeros(len(unit), dtype=bool), np.arange(len(unit))
    chances = section.span_geometric_p * (1 - section.span_geometric_p) ** np.arange(section.max_span_words)
    open_positions = np.flatnonzero(hideable)
    budget = max(round(section.mlm_probability * len(open_positions)), 1)
    while len(open_positions) and budget > 0:
        first = unit[generator.choice(open_positions)]
        length = 1 + generator.choice(section.max_span_words, p=chances / chances.sum())
        barriers = unit[~hideable & (unit > first)]
        end = min(first + length, *barriers[:1])
        tokens = open_positions[(unit[open_positions] >= first) & (unit[open_positions] < end)]
        words, sizes = np.unique(unit[tokens], return_counts=True)
        last = words[min(int(np.searchsorted(np.cumsum(sizes), budget)), len(words) - 1)]
        taken = tokens[unit[tokens] <= last]
        hidden[taken], span[taken] = True, taken[0]
        budget -= len(taken)
        open_positions = open_positions[~hidden[open_positions]]
    return hidden, span


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Any) -> tuple[np.ndarray, int, int]:
    """(whether each id is that of a special token, the mask token's id, number of ids); to ask a tokenizer takes long."""
    special = np.zeros(len(tokenizer), dtype=bool)
    special[tokenizer.all_special_ids] = True
    return special, int(tokenizer.mask_token_id), len(tokenizer)
