"""What a finished model says of a row: entities with their places, or a tag for each word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.tag_schemes import spans
from tunesmith.metrics.tagging import first_tokens
from tunesmith.tasks.token_classification.rows import text_words
from tunesmith.tasks.token_classification.section import TokenClassificationSpec

if TYPE_CHECKING:
    import torch

Piece = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of each word or token that is tagged: its word, its tag, how sure the model is, and where in the word it begins and ends [., 2]."""


def outputs(section: TokenClassificationSpec, logits: torch.Tensor, tuned: dict[str, Any], examples: Any) -> list[Piece]:
    """What each window says of the words it owns, from logits [windows, tokens, tags]."""
    shares = logits.float().softmax(-1).cpu().numpy()
    columns, found = examples.columns, []
    for index, words in enumerate(columns["word"]):
        word = np.asarray(words)
        owned = np.flatnonzero(word >= 0)
        if section.aggregation_strategy == "simple":
            places = np.stack([np.asarray(columns[name][index])[owned] for name in ("begin", "end")], 1)
            found.append((word[owned], shares[index, owned].argmax(-1), shares[index, owned].max(-1), places))
            continue
        first = first_tokens(words)
        picked = _of_words(section.aggregation_strategy, shares[index, owned], np.searchsorted(owned, first))
        found.append((word[first], picked.argmax(-1), picked.max(-1), np.empty((len(first), 0))))
    return found


def _of_words(strategy: str, shares: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The shares of the tags of each word [words, tags], from those of its tokens [tokens, tags]."""
    if strategy == "average":
        mean: np.ndarray = np.add.reduceat(shares, starts) / np.diff(starts, append=len(shares))[:, None]
        return mean
    ends = [*starts[1:], len(shares)]
    surest = [start + int(shares[start:end].max(-1).argmax()) for start, end in zip(starts, ends, strict=True)]
    picked: np.ndarray = shares[starts if strategy == "first" else surest]
    return picked


def join(section: TokenClassificationSpec, parts: list[Piece], row: dict[str, Any]) -> dict[str, Any]:
    """`{text, tokens, entities}` with the places of entities in the text and among the tokens, or `{text, tokens, tags, scores}`.

    The text of a row of tokens is these with a space between.
    """
    word, tag, score, places = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    tokens, text = row["words"], row["source_text"]
    if text is None:
        ends = np.cumsum([len(token) + 1 for token in tokens]).tolist()
        text, offsets = " ".join(tokens), [(end - len(token) - 1, end - 1) for token, end in zip(tokens, ends, strict=True)]
    else:
        offsets = text_words(text, section.words)
    names = [section.labels[index] for index in tag]
    if section.scheme == "none":
        heads = first_tokens(word)
        return {
            "text": text,
            "tokens": tokens,
            "tags": [names[index] for index in heads],
            "tag_scores": score[heads].astype(float).tolist(),
        }
    entities = []
    for name, first, end in spans(names):
        last = end - 1
        start, stop = offsets[word[first]][0], offsets[word[last]][1]
        if places.shape[1]:
            start, stop = start + int(places[first, 0]), offsets[word[last]][0] + int(places[last, 1])
        entities.append(
            {
                "label": name,
                "text": text[start:stop],
                "start": start,
                "end": stop,
                "score": float(score[first:end].mean()),
                "first_word": int(word[first]),
                "last_word": int(word[last]),
            }
        )
    return {"text": text, "tokens": tokens, "entities": entities}
