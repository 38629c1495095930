"""Random models of a few thousand weights with tokenizers of a few dozen words, saved as any checkpoint is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

GOOD = ["good", "great", "fine", "lovely", "warm", "bright"]
BAD = ["bad", "awful", "dull", "poor", "cold", "grim"]
PLAIN = ["the", "film", "was", "a", "story", "of", "two", "friends", "and", "their", "long", "day", "in", "town", "again"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}


def texts_and_labels(num_rows: int = 40, seed: int = 0) -> tuple[list[str], list[str]]:
    """Different texts of 3 to 13 words; a word of praise or of blame says the label."""
    draw = random.Random(seed)
    texts, labels = [], []
    for index in range(num_rows):
        words = GOOD if index % 2 else BAD
        tail = [draw.choice(PLAIN) for _ in range(draw.randint(1, 11))]
        texts.append(" ".join([PLAIN[index % 15], draw.choice(words), *tail, PLAIN[index // 15]]))
        labels.append("good" if index % 2 else "bad")
    return texts, labels


def write_jsonl(path: Path, num_rows: int = 40, seed: int = 0) -> Path:
    """`text` and `label` of `texts_and_labels`."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(*texts_and_labels(num_rows, seed), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def wordpiece_tokenizer(token_type_ids: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that puts [CLS] before and [SEP] after, as BERT's."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL, *GOOD, *BAD, *PLAIN, *letters[1:], *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids", *(["token_type_ids"] if token_type_ids else []), "attention_mask"]
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, model_max_length=64, **names)


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with an end of text and no pad token, as GPT-2's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges, pieces = [], ["<|endoftext|>", *letters]
    for word in [*GOOD, *BAD, *PLAIN]:
        merged = "Ġ"
        for letter in word:
            if merged + letter not in pieces:
                merges.append((merged, letter))
                pieces.append(merged + letter)
            merged += letter
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", model_input_names=["input_ids", "attention_mask"], model_max_length=64
    )


def _decoder(config: str, **more: Any) -> Callable[[int], Any]:
    return lambda size: getattr(transformers, config)(
        vocab_size=size, **{**SMALL, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, **more}
    )


def _encoder(config: str, **more: Any) -> Callable[[int], Any]:
    return lambda size: getattr(transformers, config)(vocab_size=size, **{**SMALL, "pad_token_id": 0, **more})


ENCODERS: dict[str, Callable[[int], Any]] = {
    "bert": _encoder("BertConfig"),
    "distilbert": lambda size: transformers.DistilBertConfig(
        vocab_size=size, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64, pad_token_id=0
    ),
    "roberta": _encoder("RobertaConfig", type_vocab_size=1),
    "xlm-roberta": _encoder("XLMRobertaConfig", type_vocab_size=1),
    "deberta-v2": _encoder(
        "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm",
        share_att_key=True, pooler_hidden_size=16, position_biased_input=False, type_vocab_size=0,
    ),
    "modernbert": _encoder(
        "ModernBertConfig", local_attention=8, global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
    ),
    "electra": _encoder("ElectraConfig", embedding_size=8),
    "albert": _encoder("AlbertConfig", embedding_size=8),
}  # fmt: skip
DECODERS: dict[str, Callable[[int], Any]] = {
    "gpt2": lambda size: transformers.GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "llama": _decoder("LlamaConfig"),
    "qwen2": _decoder("Qwen2Config"),
    "qwen3": _decoder("Qwen3Config", head_dim=8),
    "mistral": _decoder("MistralConfig", sliding_window=8),
    "gemma": _decoder("GemmaConfig", head_dim=8),
}
LANGUAGE_MODELS: dict[str, Callable[[int], Any]] = {
    **DECODERS,
    "gemma2": _decoder("Gemma2Config", head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0, sliding_window=8),
    "phi": _decoder("PhiConfig", num_key_value_heads=2),
    "phi3": _decoder("Phi3Config", pad_token_id=0),
    "cohere": _decoder("CohereConfig", logit_scale=0.25),
    "granite": _decoder("GraniteConfig", logits_scaling=3.0),
    "gpt_neox": lambda size: transformers.GPTNeoXConfig(vocab_size=size, **SMALL, bos_token_id=0, eos_token_id=0),
    "opt": lambda size: transformers.OPTConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, max_position_embeddings=64,
        word_embed_proj_dim=16, pad_token_id=1, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip
WITHOUT_TOKEN_TYPES = ("distilbert", "roberta", "xlm-roberta", "modernbert", "deberta-v2")


def tiny_decoder(kind: str, vocab_size: int = 64, seed: int = 0, **more: Any) -> Any:
    """A random causal language model of that kind, in fp32 and without dropout, with weights of a usual size."""
    config = LANGUAGE_MODELS[kind](vocab_size)
    for name, value in more.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.config.use_cache = False
    return model.float().eval()


def save_tiny(kind: str, folder: Path, auto_model: str = "AutoModel") -> Path:
    """A random model of that kind and its tokenizer, under `folder`."""
    decoder = kind in DECODERS
    tokenizer = bpe_tokenizer() if decoder else wordpiece_tokenizer(kind not in WITHOUT_TOKEN_TYPES)
    config = (DECODERS if decoder else ENCODERS)[kind](len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, auto_model).from_config(config)
        # Weights of a usual size, so that a wrong pad or position moves the logits visibly.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted(model: Any, **settings: Any) -> Any:
    """The model in training mode with LoRA on all linear layers, B away from zero."""
    import peft

    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", **settings))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return adapted.train()
