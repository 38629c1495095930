"""Pairs of a text and the same words backwards, and random encoder-decoders that read them, with tokenizers as theirs are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MBart50Tokenizer, MBartTokenizer, PreTrainedTokenizerFast

from tiny_models import BAD, GOOD, PLAIN

WORDS = [*GOOD, *BAD, *PLAIN]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def pairs(num_rows: int = 40, seed: int = 0, longest: int = 9) -> list[tuple[str, str]]:
    """Different texts of 3 to `longest` words, and their words backwards."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < num_rows:
        words = [draw.choice(WORDS) for _ in range(draw.randint(3, longest))]
        found[" ".join(words)] = " ".join(reversed(words))
    return list(found.items())


def write_pairs(path: Path, num_rows: int = 40, seed: int = 0, longest: int = 9) -> Path:
    """`source` and `target`, one object a line."""
    rows = [{"source": source, "target": target} for source, target in pairs(num_rows, seed, longest)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_translations(path: Path, num_rows: int = 40, first: str = "en", second: str = "de") -> Path:
    """The same as texts by their languages."""
    rows = [{"translation": {first: source, second: target}} for source, target in pairs(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def word_tokenizer(single: str = "$A </s>") -> PreTrainedTokenizerFast:
    """A token for each word, and what stands around a text: T5's by default, or BART's `<s> $A </s>`."""
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def _pieces(codes: list[str]) -> list[tuple[str, float]]:
    return [
        *((token, 0.0) for token in SPECIAL),
        *((f"▁{word}", -1.0) for word in WORDS),
        ("▁", -9.0),
        *((code, 0.0) for code in codes),
        ("<mask>", 0.0),
    ]


def language_tokenizer(kind: str) -> Any:
    """mBART's: `mbart` puts the language after a text, `mbart50` before it."""
    module = transformers.models.mbart50.tokenization_mbart50 if kind == "mbart50" else transformers.models.mbart.tokenization_mbart
    make = MBart50Tokenizer if kind == "mbart50" else MBartTokenizer
    return make(vocab=_pieces(module.FAIRSEQ_LANGUAGE_CODES), model_max_length=64)


TWO_SIDES = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _two_sides(config: str, **more: Any) -> Callable[[int], Any]:
    return lambda size: getattr(transformers, config)(vocab_size=size, **{**TWO_SIDES, **more})


ENCODER_DECODERS: dict[str, Callable[[int], Any]] = {
    "t5": lambda size: transformers.T5Config(vocab_size=size, **T5),
    "t5-gated": lambda size: transformers.T5Config(vocab_size=size, **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": _two_sides("BartConfig", bos_token_id=0, decoder_start_token_id=2),
    "mbart": _two_sides("MBartConfig", bos_token_id=0),
    "mbart50": _two_sides("MBartConfig", bos_token_id=0, decoder_start_token_id=2),
    "marian": _two_sides("MarianConfig", decoder_start_token_id=1, forced_eos_token_id=2, scale_embedding=True),
    "pegasus": _two_sides("PegasusConfig", decoder_start_token_id=1, forced_eos_token_id=2),
}
LANGUAGES = ("mbart", "mbart50")
"""Those whose tokenizers have languages."""


def tiny_encoder_decoder(kind: str, vocab_size: int = 64, dropout: float = 0.0) -> Any:
    """A random model of that kind with weights of a usual size; Marian with a bias on its logits."""
    config = ENCODER_DECODERS[kind](vocab_size)
    for name in ("dropout", "dropout_rate"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
        if kind == "marian":
            model.final_logits_bias.normal_(std=0.5)
    return model.float().eval()


def save_tiny_encoder_decoder(kind: str, folder: Path, dropout: float = 0.0) -> Path:
    """Such a model and its tokenizer, under `folder`."""
    single = "<s> $A </s>" if kind == "bart" else "$A </s>"
    tokenizer = language_tokenizer(kind) if kind in LANGUAGES else word_tokenizer(single)
    tiny_encoder_decoder(kind, len(tokenizer), dropout).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
