"""Writes a finished model: plain Hugging Face files and a card whose code loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.models.remote_code import copy_code
from tunesmith.registry import Method
from tunesmith.runs.secrets import redact

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def card_code(
    auto_model: str, adapters: bool = False, new_tokens: bool = False, quantization: Any = None, remote_code: bool = False
) -> str:
    """Python that loads a saved model from `folder`; the proof runs it.

    With `new_tokens`, adapters are loaded by PEFT, which fits the base's embeddings to the tokenizer beside the adapters; with
    `remote_code`, a model's own code is run.
    """
    arguments = ["folder"] + (['dtype="float32"'] if adapters else []) + (["trust_remote_code=True"] if remote_code else [])
    # Loaded with adapters, a base keeps its own generation config, which does not know where a template's turns end.
    own_ends = adapters and auto_model in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    by_transformers, lines = [auto_model], []
    if adapters and new_tokens:
        auto_model = auto_model.replace("Auto", "AutoPeft", 1)
        by_transformers, lines = [], [f"from peft import {auto_model}"]
    if quantization is not None:
        by_transformers.append("BitsAndBytesConfig")
        settings = {name: value for name, value in quantization.to_diff_dict().items() if not name.startswith("_")}
        values = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        arguments.append(f"quantization_config=BitsAndBytesConfig({values})")
    if own_ends:
        by_transformers.append("GenerationConfig")
    if by_transformers:
        lines.append(f"from transformers import {', '.join(by_transformers)}")
    lines += ["", f"model = {auto_model}.from_pretrained({', '.join(arguments)})"]
    if own_ends:
        lines.append("model.generation_config = GenerationConfig.from_pretrained(folder)")
    if quantization is not None and quantization.load_in_4bit:
        lines += [
            "for module in model.modules():",
            "    module.support_avx512bf16_for_cpu = False  # where a CPU has it, bitsandbytes would round scales to bf16",
        ]
    return "\n".join(lines)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: Method, folder: Path, base: Path, card: str) -> None:
    """Weights, configuration, tokenizer and README.md under `folder`, such that transformers alone loads them."""
    # Training does without the cache of keys; whoever generates with the saved model wants it.
    use_cache, model.config.use_cache = getattr(model.config, "use_cache", True), True
    try:
        method.save(model, folder, base)
    finally:
        model.config.use_cache = use_cache
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    copy_code(base, folder)
    (folder / "README.md").write_text(redact(card), encoding="utf-8")


def write_card(name: str, base: str, code: str, sections: dict[str, Any], tags: list[str]) -> str:
    """A model card (`base` is empty for a new model): what the model is, Python that loads it, and tables of plain values."""
    front = {"library_name": "transformers", **({"base_model": base} if base else {}), "tags": tags}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {name}", ""]
    lines += ["```python", 'folder = "."  # this folder', code, "```", ""]
    for title, values in sections.items():
        lines += [f"## {title}", ""]
        if isinstance(values, dict):
            lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in values.items())]
        else:
            lines.append(str(values))
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
