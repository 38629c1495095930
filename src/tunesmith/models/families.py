"""Kinds of models that can be made new: their configurations by size, and what their tokenizers put around a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import InputError, Problem, did_you_mean
from tunesmith.registry import Task
from tunesmith.spec import NewModelSpec

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
}
"""(layers, hidden size, heads), those of the BERT miniatures (arXiv:1908.08962)."""
MAX_TOKENS = 512
OWNED_BY_THE_TOKENIZER = (
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "cls_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
)
OWNED_BY_THE_TASK = ("id2label", "label2id", "problem_type", "num_labels", "architectures", "model_type", "dtype", "transformers_version")


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    summary: str
    config: str
    """The transformers configuration class."""
    shape: Callable[[int, int, int], dict[str, Any]]
    """(layers, hidden, heads) -> what the configuration calls them."""
    special_tokens: dict[str, str]
    """By their names in transformers, in the order of their ids."""
    single: str = ""
    pair: str = ""
    """What stands around one text and around two, as tokenizers' TemplateProcessing writes it; empty: nothing."""
    tokenizer: str = "bpe"
    """The kind of tokenizer that such models usually have."""
    reads_segments: bool = False
    """Whether the second of two texts is marked by token_type_ids."""
    reserved_positions: int = 0
    """Positions that no token of a text has."""
    decoder_start: str = ""
    """Of an encoder-decoder, the special token that its decoder reads first."""


def _wide(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": MAX_TOKENS,
    }


def _gated(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    """A gated layer has three matrices, and two thirds of the width."""
    return {**_wide(layers, hidden, heads), "intermediate_size": -(-8 * hidden // 3 // 64) * 64}


BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
BERT_LAYOUT: dict[str, Any] = {"special_tokens": BERT_TOKENS, "single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
ROBERTA_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
SIDES = ("encoder", "decoder")
FAMILIES: dict[str, Family] = {
    "bert": Family("encoder", "BertConfig", _wide, **BERT_LAYOUT, tokenizer="wordpiece", reads_segments=True),
    "distilbert": Family(
        "encoder",
        "DistilBertConfig",
        lambda layers, hidden, heads: {
            "n_layers": layers, "dim": hidden, "n_heads": heads, "hidden_dim": 4 * hidden, "max_position_embeddings": MAX_TOKENS,
        },
        **BERT_LAYOUT,
        tokenizer="wordpiece",
    ),
    "roberta": Family(
        "encoder",
        "RobertaConfig",
        lambda *sizes: {**_wide(*sizes), "max_position_embeddings": MAX_TOKENS + 2, "type_vocab_size": 1},
        {**ROBERTA_TOKENS, "cls_token": "<s>", "sep_token": "</s>"},
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        reserved_positions=2,
    ),
    "modernbert": Family(
        "encoder, gated, rotary positions",
        "ModernBertConfig",
        lambda layers, hidden, heads: {**_wide(layers, hidden, heads), "intermediate_size": 3 * hidden // 2},
        **BERT_LAYOUT,
    ),
    "electra": Family(
        "encoder with embeddings of its own width",
        "ElectraConfig",
        lambda layers, hidden, heads: {**_wide(layers, hidden, heads), "embedding_size": hidden},
        **BERT_LAYOUT,
        tokenizer="wordpiece",
        reads_segments=True,
    ),
    "gpt2": Family(
        "decoder",
        "GPT2Config",
        lambda layers, hidden, heads: {"n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": MAX_TOKENS},
        {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<unk>"},
    ),
    "llama": Family(
        "decoder, gated, rotary positions",
        "LlamaConfig",
        lambda layers, hidden, heads: {**_gated(layers, hidden, heads), "num_key_value_heads": heads, "tie_word_embeddings": True},
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "<s> $A",
        "<s> $A $B",
    ),
    "t5": Family(
        "encoder-decoder, relative positions",
        "T5Config",
        lambda layers, hidden, heads: {
            "num_layers": layers, "d_model": hidden, "num_heads": heads, "d_kv": hidden // heads, "d_ff": 4 * hidden,
        },
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "$A </s>",
        "$A </s> $B </s>",
        tokenizer="unigram",
        decoder_start="pad_token",
    ),
    "bart": Family(
        "encoder-decoder",
        "BartConfig",
        lambda layers, hidden, heads: {
            "d_model": hidden, "max_position_embeddings": MAX_TOKENS,
            **{f"{side}_layers": layers for side in SIDES}, **{f"{side}_attention_heads": heads for side in SIDES},
            **{f"{side}_ffn_dim": 4 * hidden for side in SIDES},
        },
        {**ROBERTA_TOKENS, "cls_token": "<s>", "sep_token": "</s>"},
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        decoder_start="eos_token",
    ),
}  # fmt: skip
"""By name; `model: {new: NAME}`."""


def find_family(name: str) -> Family:
    """The family of that name. Raises InputError when there is none."""
    if name not in FAMILIES:
        fix = did_you_mean(name, FAMILIES)
        raise InputError("spec.unknown_name", "there is no family of new models of this name", where="model.new", found=name, fix=fix)
    return FAMILIES[name]


def check_family(spec: NewModelSpec, task: Task) -> None:
    """Refuses a new model that could not be made, before a tokenizer is trained for it.

    Raises InputError with a family that does not exist or has no model for the task, or with settings that are wrong.
    """
    import torch
    import transformers

    kind = getattr(transformers, find_family(spec.new).config)
    models = getattr(transformers, task.auto_model)
    if kind not in models._model_mapping:
        able = [name for name, family in FAMILIES.items() if getattr(transformers, family.config) in models._model_mapping]
        raise InputError(
            "spec.conflict", f"this family has no model for {task.name}", where="model.new", found=spec.new, fix=f"one of {', '.join(able)}"
        )
    problems = [problem for name, value in spec.config.items() if (problem := _setting_problem(kind, name, value)) is not None]
    if problems:
        raise InputError.from_problems(problems)
    try:
        with torch.device("meta"):
            models.from_config(_config(spec, kind))
    except Exception as error:  # whatever upstream raises of sizes that do not go together
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError("model.load", "no model can be made so", where="model.config", found=found, fix="correct model.config") from error


def _setting_problem(kind: Any, name: str, value: Any) -> Problem | None:
    defaults, where = kind().to_dict(), f"model.config.{name}"
    names = [*defaults, *kind.attribute_map]
    if name in (*OWNED_BY_THE_TOKENIZER, *OWNED_BY_THE_TASK):
        whose = "tokenizer" if name in OWNED_BY_THE_TOKENIZER else "task"
        return Problem("spec.conflict", f"{name} follows from the {whose}", where, f"{name}: {value}"[:100], "leave it out")
    if name not in names:
        return Problem("spec.unknown_key", f"{kind.__name__} has no such setting", where, name, did_you_mean(name, names))
    default = defaults.get(kind.attribute_map.get(name, name))
    allowed = (int, float) if type(default) is float else type(default)
    if default is None or (isinstance(value, allowed) and isinstance(value, bool) == isinstance(default, bool)):
        return None
    problem = f"{name} should be of the type of its default, {default!r}"
    return Problem("spec.value", problem, where, repr(value)[:100], f"for example {default!r}")


def _config(spec: NewModelSpec, kind: Any, **more: Any) -> Any:
    chosen = {kind.attribute_map.get(name, name): value for name, value in spec.config.items()}
    return kind(**{**find_family(spec.new).shape(*SIZES[spec.size]), **more, **chosen})


def family_config(spec: NewModelSpec, tokenizer: Any) -> Any:
    """The transformers configuration of a new model for this tokenizer."""
    import transformers

    family = find_family(spec.new)
    kind = getattr(transformers, family.config)
    special = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in family.special_tokens.items()}
    known = {*special, *kind().to_dict()}
    ids = {name: special.get(name) for name in OWNED_BY_THE_TOKENIZER if name.endswith("_id") and name in known}
    if family.decoder_start:
        ids["decoder_start_token_id"] = special[f"{family.decoder_start}_id"]
    return _config(spec, kind, vocab_size=len(tokenizer), **ids)


def longest_text(spec: NewModelSpec, config: Any) -> int:
    """The most tokens that a new model reads at once."""
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    return int(positions) - find_family(spec.new).reserved_positions
