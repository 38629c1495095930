"""What the model reads and learns: words in windows of tokens, labels, loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.collate import IGNORED, pad_token_labels
from tunesmith.data.tag_schemes import split_tag
from tunesmith.data.windows import owners, split_windows
from tunesmith.errors import InputError
from tunesmith.metrics.tagging import TagMeter
from tunesmith.models.load import ensure_pad_token
from tunesmith.registry import Decision, Fault, Meter
from tunesmith.tasks.token_classification.section import TokenClassificationSpec
from tunesmith.tasks.token_classification.tags import target

if TYPE_CHECKING:
    import torch

CARRIED = ("word", "begin", "end")
PROBE = "a a"


def fit_tokenizer(section: TokenClassificationSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token; and where words that stand alone would be read as if they were no beginnings, a space before each.

    Raises InputError for a tokenizer that does not know which token is of which word.
    """
    if not tokenizer.is_fast:
        found, fix = type(tokenizer).__name__, "a checkpoint with a tokenizer.json"
        raise InputError(
            "model.tokenizer", "the tokenizer does not say which token is of which word", where="model.name", found=found, fix=fix
        )
    decisions = ensure_pad_token(tokenizer, model)
    if _joins_words(tokenizer):
        from tokenizers import normalizers

        backend = tokenizer.backend_tokenizer
        space = normalizers.Prepend(" ")
        before = backend.normalizer
        backend.normalizer = normalizers.Sequence([space, before]) if before is not None else space
        decisions.append(
            Decision("tokenizer", "a space before each word", "words are read one by one, and it would take them for parts of one")
        )
    return decisions


def _joins_words(tokenizer: Any) -> bool:
    """Whether the second of two words has other tokens by itself than after a space in a text."""
    in_text = tokenizer(PROBE, add_special_tokens=False)
    second = [token for token, (_, end) in zip(in_text["input_ids"], in_text.encodings[0].offsets, strict=True) if end == len(PROBE)]
    alone = tokenizer(PROBE.split(), is_split_into_words=True, add_special_tokens=False)
    words = alone.word_ids(0)
    return second != [token for token, word in zip(alone["input_ids"], words, strict=True) if word == 1] and bool(second)


def source(section: TokenClassificationSpec, row: dict[str, Any], tokenizer: Any) -> dict[str, Any] | None:
    """The words, unless the tokenizer makes nothing of one of them."""
    known = tokenizer(row["words"], is_split_into_words=True).word_ids(0)
    return {"words": row["words"]} if set(range(len(row["words"]))) <= set(known) else None


def encode(section: TokenClassificationSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Windows of tokens: input_ids, labels (-100 where nothing is trained), and of each token its word, -1 where another window
    owns it; with `simple`, also where in its word it begins and ends.

    A word of which the tokenizer makes nothing is its unknown token. A word longer than a window is cut to it.
    """
    before, after = _special_tokens(tokenizer)
    capacity = max_length - len(before) - len(after)
    has_labels = "label" in batch
    is_simple = section.aggregation_strategy == "simple"
    names = ["input_ids", "word", *(["labels"] if has_labels else []), *(["begin", "end"] if is_simple else [])]
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "full_length", "fault", "row")}
    going_on = _going_on(section)
    tokens = tokenizer(batch["words"], is_split_into_words=True, add_special_tokens=False, truncation=False, padding=False, verbose=False)
    for row, encoding in enumerate(tokens.encodings):
        words, fault = _tokens_of_words(encoding, batch["words"][row], tokenizer.unk_token_id)
        labels = target(section, batch["label"][row]) if has_labels else [IGNORED] * len(words)
        lengths = [min(len(pieces), capacity) for pieces in words]
        windows = split_windows(lengths, capacity, section.stride)
        owner = owners(lengths, windows)
        for number, (first, last) in enumerate(windows):
            if fault is None and not (owner[first:last] == number).any():
                continue
            window = [(token, -1, IGNORED, 0, 0) for token in before]
            for word in range(first, last):
                owned = owner[word] == number
                label = labels[word] if owned else IGNORED
                for token, begin, end in words[word][:capacity]:
                    window.append((token, word if owned else -1, label, begin, end))
                    label = going_on[label] if section.label_all_tokens and label != IGNORED else IGNORED
            window += [(token, -1, IGNORED, 0, 0) for token in after]
            for name, values in zip(("input_ids", "word", "labels", "begin", "end"), zip(*window, strict=True), strict=True):
                if name in columns:
                    columns[name].append(list(values))
            columns["full_length"].append(len(before) + sum(len(words[word]) for word in range(first, last)) + len(after))
            columns["fault"].append(fault)
            columns["row"].append(row)
    return columns


def _tokens_of_words(encoding: Any, words: Sequence[str], unknown: int | None) -> tuple[list[list[tuple[int, int, int]]], Fault | None]:
    """(id, begin, end in the word) of the tokens of each word, and what is wrong with a word that has none."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in words]
    for token, word, (begin, end) in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
        found[word].append((token, begin, end))
    for number, pieces in enumerate(found):
        if not pieces and unknown is None:
            shown = f"word {number + 1}: {words[number]!r}"
            return found, ("data.empty_text", "the tokenizer makes nothing of a word, and has no unknown token", shown, "remove the word")
        if not pieces and unknown is not None:
            pieces.append((unknown, 0, len(words[number])))
    return found, None


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before a text, and after it."""
    tokens = tokenizer(["a"], is_split_into_words=True, return_special_tokens_mask=True)
    inside = [place for place, is_special in enumerate(tokens["special_tokens_mask"]) if not is_special]
    return tokens["input_ids"][: inside[0]], tokens["input_ids"][inside[-1] + 1 :]


def _going_on(section: TokenClassificationSpec) -> list[int]:
    """The label of a word's later sub-words by that of its first: I- where that is B-, as in transformers' examples."""
    ids = {label: index for index, label in enumerate(section.labels)}
    inner = {label: f"I-{split_tag(label)[1]}" for label in section.labels if section.scheme != "none" and label.startswith("B-")}
    return [ids.get(inner.get(label, label), index) for index, label in enumerate(section.labels)]


def label_tensor(section: TokenClassificationSpec, labels: Sequence[Any], shape: tuple[int, int]) -> torch.Tensor:
    """Labels [windows, tokens], -100 where nothing is trained."""
    return pad_token_labels(labels, shape)


def forward(section: TokenClassificationSpec, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
    """Logits [windows, tokens, tags] in fp32."""
    return model(**inputs).logits.float()  # type: ignore[no-any-return]


def loss(section: TokenClassificationSpec, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """The summed cross-entropy of trained tokens."""
    import torch.nn.functional as F  # noqa: N812

    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def loss_weight(section: TokenClassificationSpec, labels: Sequence[Any]) -> float:
    """The number of trained tokens."""
    return float(sum(label != IGNORED for window in labels for label in window))


def meter(section: TokenClassificationSpec) -> Meter:
    """Entities as seqeval counts them, or plain tags."""
    return TagMeter(section.labels, section.scheme != "none")


def metrics(section: TokenClassificationSpec) -> dict[str, bool]:
    """What is reported; greater is better."""
    return dict.fromkeys(("accuracy", "macro_f1") if section.scheme == "none" else ("f1", "precision", "recall", "accuracy"), True)
