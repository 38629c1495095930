"""A tiny model with random weights and sentences for it, for measurements in which the model ought not to count."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = 200
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 2048


def tiny_model(folder: Path) -> None:
    """A BERT of 2 layers x 32 that reads 2,048 tokens, with a tokenizer of 200 words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *(f"w{number}" for number in range(WORDS))]) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=LONGEST)
    config = BertConfig(
        vocab_size=len(SPECIAL) + WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LONGEST,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_sentences(path: Path, num_rows: int, num_words: int) -> None:
    """Different texts of half to all of `num_words` words, a token each, and a label that the first word says."""
    draw = random.Random(0)
    names = [f"w{number}" for number in range(WORDS)]
    with path.open("w") as file:
        for row in range(num_rows):
            words = draw.choices(names, k=draw.randint(-(-num_words // 2), num_words))
            label = "even" if int(words[0][1:]) % 2 == 0 else "odd"
            # the number of the row in words, so that no text stands twice
            number = [names[row // WORDS**place % WORDS] for place in range(3)]
            file.write(json.dumps({"text": " ".join([words[0], *number, *words[1:]]), "label": label}) + "\n")
