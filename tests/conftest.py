"""What many tests start from: a tiny BERT with random weights."""

from __future__ import annotations

import signal
import string
from pathlib import Path

import pytest

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """the a an and or not it is was this that film book food very good bad great poor fine dull awful lovely nice boring
happy sad warm cold plot actor cast scene story music play meal soup service room hotel staff clean dirty one two three four five
six seven eight nine ten first second last i we you they he she of to in on for with at from by but so my our no yes""".split()  # noqa: SIM905 one word a line would be a page


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Tests that are started in the background ignore SIGINT, and so would what they train."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of 2 layers x 16 that reads 64 tokens, and its WordPiece tokenizer; weights are random."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    characters = [*string.ascii_lowercase, *string.digits, *".,;:!?'\"-()"]
    vocabulary = list(dict.fromkeys([*SPECIAL, *characters, *(f"##{character}" for character in characters[:36]), *WORDS]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
