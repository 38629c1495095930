"""Trains a tokenizer on texts, with the special tokens of a family of models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError
from tunesmith.models.families import Family
from tunesmith.registry import Decision
from tunesmith.spec import TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

USUAL_SIZE = 8000
"""What `vocab_size: auto` asks for, as far as the texts go."""
SAMPLE_TEXTS = 1000
SHOWN_TOKENS = 8

Texts = Callable[[], Iterator[str]]


def train_tokenizer(spec: TokenizerSpec, family: Family, texts: Texts) -> Tokenizer:
    """A tokenizer of `tokenizers`, with the family's special tokens first, and what the family puts around a text.

    Raises InputError when the texts do not have so many tokens, or need more.
    """
    from tokenizers import processors

    special = list(dict.fromkeys(family.special_tokens.values()))
    wanted = USUAL_SIZE if spec.vocab_size == "auto" else spec.vocab_size
    kind = family.tokenizer if spec.train == "auto" else spec.train
    tokenizer = _trained(kind, wanted, spec.lowercase, special, family.special_tokens["unk_token"], texts)
    _check_size(spec, tokenizer.get_vocab_size(), wanted)
    if family.single:
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=family.single, pair=family.pair, special_tokens=ids)
    return tokenizer


def _check_size(spec: TokenizerSpec, found: int, wanted: int) -> None:
    if found > wanted:
        fix = f"at least {found}, or auto"
        raise InputError(
            "spec.value",
            "the characters of the training rows alone are more",
            where="model.tokenizer.vocab_size",
            found=f"vocab_size: {wanted}",
            fix=fix,
        )
    if spec.vocab_size != "auto" and found < wanted:
        raise InputError(
            "spec.value",
            "the training rows do not have so many tokens",
            where="model.tokenizer.vocab_size",
            found=f"vocab_size: {wanted:,}; they give {found:,}",
            fix=f"at most {found}, or auto",
        )


def _trained(kind: str, size: int, lowercase: bool, special: list[str], unknown: str, texts: Texts) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    lower = [normalizers.Lowercase()] if lowercase else []
    settings: dict[str, Any] = {"vocab_size": size, "show_progress": False}
    tokenizer: Any
    if kind == "wordpiece":
        normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        # What goes on in a word is numbered in the trainer's own order, which is another each time, unless it is known before.
        inner = [f"##{letter}" for letter in _letters(normalizer, texts)]
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        _read(tokenizer, normalizer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece())
        tokenizer.train_from_iterator(texts(), trainers.WordPieceTrainer(special_tokens=[*special, *inner], **settings))
        model: Any = models.WordPiece(tokenizer.get_vocab(), unk_token=unknown)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        _read(
            tokenizer,
            normalizers.Sequence(lower) if lower else None,
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special, **settings)
        tokenizer.train_from_iterator(texts(), trainer)
        model = tokenizer.model
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        _read(tokenizer, normalizers.Sequence([normalizers.NFKC(), *lower]), pre_tokenizers.Metaspace(), decoders.Metaspace())
        tokenizer.train_from_iterator(texts(), trainers.UnigramTrainer(unk_token=unknown, special_tokens=special, **settings))
        model = models.Unigram(_ordered_pieces(tokenizer, len(special)), special.index(unknown))
    else:
        split = pre_tokenizers.Whitespace() if kind == "word" else pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        model = models.WordLevel(_most_frequent(split, lower[0] if lower else None, size, special, texts), unk_token=unknown)
        tokenizer = Tokenizer(model)
        _read(tokenizer, lower[0] if lower else None, split, decoders.Fuse() if kind == "character" else None)
    trained = Tokenizer(model)
    _read(trained, tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    trained.add_special_tokens(special)
    return trained


def _read(tokenizer: Any, normalizer: Any, pre_tokenizer: Any, decoder: Any) -> None:
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder


def _letters(normalizer: Any, texts: Texts) -> list[str]:
    letters = {letter for text in texts() for letter in normalizer.normalize_str(text)}
    return sorted(letter for letter in letters if not letter.isspace())


def _ordered_pieces(tokenizer: Tokenizer, num_special: int) -> list[tuple[str, float]]:
    """The pieces and their scores (log-probabilities): rounded, since their last digits depend on an order that is another each time."""
    pieces = [(piece, round(score, 2)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return [*pieces[:num_special], *sorted(pieces[num_special:], key=lambda item: (-item[1], item[0]))]


def _most_frequent(split: Any, normalizer: Any, size: int, special: list[str], texts: Texts) -> dict[str, int]:
    """Special tokens, then words or characters, the most frequent first; ties by the alphabet."""
    counts: Counter[str] = Counter()
    for text in texts():
        normal = normalizer.normalize_str(text) if normalizer is not None else text
        counts.update(piece for piece, _ in split.pre_tokenize_str(normal))
    ordered = [piece for piece in sorted(counts, key=lambda piece: (-counts[piece], piece)) if piece not in special]
    return {piece: index for index, piece in enumerate([*special, *ordered][: max(size, len(special) + 1)])}


def wrap_tokenizer(tokenizer: Tokenizer, family: Family) -> PreTrainedTokenizerFast:
    """As transformers reads it."""
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", *(["token_type_ids"] if family.reads_segments else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, clean_up_tokenization_spaces=False, **family.special_tokens
    )


def describe_tokenizer(kind: str, tokenizer: Any, num_rows: int, texts: Texts) -> Decision:
    """What was learnt: how long tokens are, how many are unknown, and the first of them."""
    backend = tokenizer.backend_tokenizer
    encoded = [(text, backend.encode(text, add_special_tokens=False).ids) for text in islice(texts(), SAMPLE_TEXTS)]
    num_tokens = sum(len(ids) for _, ids in encoded) or 1
    unknown = 0 if kind == "bpe" else sum(ids.count(tokenizer.unk_token_id) for _, ids in encoded)
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    alone = kind == "character"
    first = [token for token, _ in vocabulary if token not in special and (alone or len(token.strip("#▁Ġ")) > 1)][:SHOWN_TOKENS]
    because = (
        f"trained on {num_rows:,} training rows; {sum(len(text) for text, _ in encoded) / num_tokens:.2f} characters a token, "
        f"{unknown / num_tokens:.2%} unknown; the first: {' '.join(map(repr, first))}"
    )
    return Decision("tokenizer", f"{kind}, {len(tokenizer):,} tokens", because)
