"""Trains a tokenizer on texts, with the special tokens of a family of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Kind:
    """One way to cut a text."""

    model: Callable[[str], Any]
    trainer: Callable[..., Any]
    """(vocab_size, special_tokens, unk_token) -> trainer."""
    pre_tokenizer: Any
    decoder: Any = None
    normalizer: Any = None


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

    if kind in ("word", "character"):
        split = pre_tokenizers.Whitespace() if kind == "word" else pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        normalizer = normalizers.Lowercase() if lowercase else None
        vocabulary = _most_frequent(split, normalizer, size, special, texts)
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        tokenizer.pre_tokenizer, tokenizer.normalizer = split, normalizer  # type: ignore[assignment]
        if kind == "character":
            tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
        tokenizer.add_special_tokens(special)
        return tokenizer
    lower = [normalizers.Lowercase()] if lowercase else []
    settings: dict[str, Any] = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
        trainer: Any = trainers.WordPieceTrainer(**settings)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(lower) if lower else None  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
        tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
        trainer = trainers.UnigramTrainer(unk_token=unknown, **settings)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


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
