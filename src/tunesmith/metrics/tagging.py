"""Metrics of tagged words: entities as conlleval and seqeval count them, or plain tags. A row is scored when its windows are all there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.collate import IGNORED
from tunesmith.data.encode import Examples, JoinedRows
from tunesmith.data.tag_schemes import spans, split_tag
from tunesmith.metrics.bootstrap import row_weight_intervals
from tunesmith.metrics.classification import ratio

if TYPE_CHECKING:
    import torch

RIGHT, GUESSED, SUPPORT = range(3)


class TagMeter:
    """F1, precision and recall of whole entities, or of tags, and the accuracy of words; a word is tagged by its first token."""

    def __init__(self, tags: Sequence[str], marks_entities: bool) -> None:
        self.tags = list(tags)
        self.marks_entities = marks_entities
        self.types = sorted({split_tag(tag)[1] for tag in tags} - {""}) if marks_entities else self.tags
        self._index = {name: index for index, name in enumerate(self.types)}
        self._kinds = [self._index.get(split_tag(tag)[1], len(self.types)) if marks_entities else self._index[tag] for tag in tags]
        """The type of each tag; O is one more."""
        size = len(self.types) + marks_entities
        self.confusion = np.zeros((size, size), dtype=np.int64)
        """Words of true type i that were predicted as type j."""
        self._joined = JoinedRows()
        self._places: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        """Of each row: where in [right, guessed and true of each type, right words, words] something stands, and how often."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor, examples: Examples) -> None:
        """Adds logits [windows, tokens, tags] and labels [windows, tokens]; examples carry `word`."""
        guesses, truths = logits.argmax(-1).to("cpu").numpy(), labels.to("cpu").numpy()
        found = []
        for guess, truth, words in zip(guesses, truths, examples.columns["word"], strict=True):
            first = first_tokens(words)
            found.append((guess[first].astype(np.int32), truth[first].astype(np.int32)))
        for _, parts in self._joined.add(examples, found):
            self._add_row(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _add_row(self, guess: np.ndarray, truth: np.ndarray) -> None:
        assert (truth != IGNORED).all()
        kinds = np.asarray(self._kinds)
        np.add.at(self.confusion, (kinds[truth], kinds[guess]), 1)
        if self.marks_entities:
            named = [{(name, start, end) for name, start, end in spans([self.tags[index] for index in ids])} for ids in (guess, truth)]
            sets = (named[0] & named[1], *named)
            counts = Counter(kind * len(self.types) + self._index[name] for kind, found in enumerate(sets) for name, _, _ in found)
        else:
            lists = (truth[guess == truth], guess, truth)
            counts = Counter(kind * len(self.types) + index for kind, ids in enumerate(lists) for index in ids.tolist())
        counts[3 * len(self.types)] = int((guess == truth).sum())
        counts[3 * len(self.types) + 1] = len(truth)
        self._places.append(np.fromiter(counts.keys(), dtype=np.int32, count=len(counts)))
        self._counts.append(np.fromiter(counts.values(), dtype=np.int32, count=len(counts)))

    def compute(self, intervals: bool = True) -> dict[str, Any]:
        """Metrics, intervals from draws of rows, scores of each type, and the confusion matrix of words (rows true, columns predicted)."""
        from scipy.sparse import csr_array

        ends = np.cumsum([0, *map(len, self._places)])
        shape = (len(self._places), 3 * len(self.types) + 2)
        rows = csr_array((np.concatenate(self._counts), np.concatenate(self._places), ends), shape=shape)
        total = np.asarray(rows.sum(0))

        def score(weights: np.ndarray) -> dict[str, np.ndarray]:
            return self._score(weights @ rows)

        right, guessed, support = total[:-2].reshape(3, -1)
        per_class = {
            name: {
                "precision": float(ratio(right, guessed)[index]),
                "recall": float(ratio(right, support)[index]),
                "f1": float(ratio(2 * right, guessed + support)[index]),
                "support": int(support[index]),
            }
            for index, name in enumerate(self.types)
        }
        labels = [*self.types, "O"] if self.marks_entities else self.types
        return {
            "metrics": {name: float(value[0]) for name, value in self._score(total[None]).items()},
            "intervals": row_weight_intervals(shape[0], score) if intervals else {},
            "per_class": per_class,
            "confusion_matrix": {"labels": labels, "rows_true_columns_predicted": self.confusion.tolist()},
            "num_words": int(total[-1]),
        }

    def _score(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics [draws] of counts [draws, as in a row]."""
        by_type = counts[:, :-2].reshape(len(counts), 3, -1)
        accuracy = ratio(counts[:, -2], counts[:, -1])
        if not self.marks_entities:
            f1 = ratio(2 * by_type[:, RIGHT], by_type[:, GUESSED] + by_type[:, SUPPORT])
            seen = (by_type[:, GUESSED] + by_type[:, SUPPORT]) > 0
            return {"accuracy": accuracy, "macro_f1": ratio((f1 * seen).sum(1), seen.sum(1))}
        right, guessed, support = (by_type[:, kind].sum(1) for kind in (RIGHT, GUESSED, SUPPORT))
        return {
            "f1": ratio(2 * right, guessed + support),
            "precision": ratio(right, guessed),
            "recall": ratio(right, support),
            "accuracy": accuracy,
        }


def first_tokens(words: Sequence[int] | np.ndarray) -> np.ndarray:
    """The places of the first token of each word, where `words` says of each token whose it is, and -1 nobody's."""
    values = np.asarray(words)
    return np.flatnonzero((values >= 0) & (np.diff(values, prepend=-2) != 0))
