"""GGUF files as checkpoints: unpacked once into a folder of safetensors, from which training starts."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.cache import cached_folder, key_of
from tunesmith.errors import InputError
from tunesmith.models.load import NO_LIMIT, load_errors, require_package

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LAYOUT = 1
"""Raised when the same file is to be unpacked differently."""
MANIFEST = "sha256.json"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read once a process while it is the same."""
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpacked(file: Path) -> Path:
    """The folder with the model and the tokenizer of a GGUF file, its weights in fp32, so that they are exactly the quantised ones.

    The folder lies in the cache under the hash of the file, and is written anew when its own files no longer have their hashes.
    Raises InputError when the file cannot be read.
    """
    require_package("gguf", "gguf")
    key = key_of(sha256_of(file), LAYOUT)[:32]

    def write(folder: Path) -> None:
        _unpack(file, folder)
        (folder / MANIFEST).write_text(json.dumps({path.name: sha256_of(path) for path in folder.iterdir()}))

    folder, _ = cached_folder("models", key, write)
    if not _is_whole(folder):
        (folder / MANIFEST).unlink()
        folder, _ = cached_folder("models", key, write)
    return folder


def _is_whole(folder: Path) -> bool:
    manifest = json.loads((folder / MANIFEST).read_text())
    return all(sha256_of(folder / name) == sha256 for name, sha256 in manifest.items())


def _unpack(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Upstream reads a file that is no GGUF as far as it goes, and then says something about shapes.
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError("model.load", "the file is no GGUF", where=str(file), fix="name a .gguf file, or a folder")
    with load_errors(file, "GGUF file"):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            local_files_only=True,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        _fit(tokenizer, model.config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """A GGUF file does not say how much its tokenizer may hand the model."""
    if tokenizer.model_max_length > NO_LIMIT and getattr(config, "max_position_embeddings", None):
        tokenizer.model_max_length = config.max_position_embeddings
