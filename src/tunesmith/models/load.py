"""Loads tokenizers and models, and finds in them what decisions need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError
from tunesmith.registry import Decision, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LIMIT = 1_000_000


@dataclass
class LoadedModel:
    """A model for a task, before a method is attached."""

    model: PreTrainedModel
    head_parameters: frozenset[str]
    """Names of the parameters that are new: not in the checkpoint, or outside the pretrained body."""
    decisions: list[Decision]


@contextmanager
def _load_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(
            "model.load",
            f"the {what} cannot be loaded",
            where=str(path),
            found=f"{type(error).__name__}: {message}",
            fix="check that the folder was written by save_pretrained (safetensors; no pickle, no remote code) for this kind of task",
        ) from error


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder."""
    from transformers import AutoTokenizer

    with _load_errors(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    # Without its files upstream makes a tokenizer that knows no word, and says nothing.
    names = set(type(tokenizer).vocab_files_names.values())
    if names and not any((path / name).is_file() for name in names | {"tokenizer.json"}):
        raise InputError(
            "model.load",
            "the folder has no tokenizer",
            where=str(path),
            found=f"none of {', '.join(sorted(names | {'tokenizer.json'}))}",
            fix="save the tokenizer beside the model: tokenizer.save_pretrained(folder)",
        )
    return tokenizer


def load_config(path: Path) -> Any:
    """The model's configuration in a folder."""
    from transformers import AutoConfig

    with _load_errors(path, "model's configuration"):
        return AutoConfig.from_pretrained(path, local_files_only=True)


def pretrained_labels(config: Any) -> tuple[str, ...]:
    """The labels of a checkpoint that has a head, in its order; LABEL_0, LABEL_1 count as none."""
    labels = [str(config.id2label[index]) for index in sorted(config.id2label or {})]
    return () if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else tuple(labels)


def load_model(path: Path, task: Task, head: dict[str, Any], seed: int) -> LoadedModel:
    """The model in a folder with the head that the task needs, in fp32; a new head is drawn from `seed`."""
    import torch
    import transformers

    with _load_errors(path, "model"):
        transformers.set_seed(seed)
        model, info = getattr(transformers, task.auto_model).from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **head,
        )
    new = set(info["missing_keys"]) | {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    prefix = model.base_model_prefix
    outside = {name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")}
    decisions = []
    if new:
        decisions.append(
            Decision("new weights", ", ".join(sorted(new)), "not in the checkpoint: drawn at random from train.seed, and trained")
        )
    unused = sorted(info["unexpected_keys"])
    if unused:
        shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        decisions.append(Decision("unused weights", shown, "in the checkpoint, but not in a model for this task"))
    model.config.use_cache = False
    return LoadedModel(model, frozenset(new | outside), decisions)


def load_trained(path: Path, auto_model: str) -> PreTrainedModel:
    """A model that a run saved, as its card loads it, in fp32 and eval mode."""
    import transformers

    with _load_errors(path, "trained model"):
        return getattr(transformers, auto_model).from_pretrained(path, local_files_only=True, use_safetensors=True, dtype="float32").eval()


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Decision]:
    """Gives tokenizer and model the same pad token.

    A decoder without one pads with its end of text, which stands in no text: the model finds a row's last token by looking for what
    is not padding. Where the tokenizer itself ends every text with it, the unknown token takes its place.
    """
    decisions = []
    if tokenizer.pad_token_id is None:
        appends_end = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
        token = tokenizer.unk_token if appends_end or tokenizer.eos_token is None else tokenizer.eos_token
        if token is None:
            raise InputError(
                "model.tokenizer", "the tokenizer has neither a pad nor an end-of-text token", fix="save the tokenizer with a pad_token"
            )
        tokenizer.pad_token = token
        decisions.append(Decision("pad token", token, "the tokenizer has none of its own; padding is masked, so the token is never read"))
    tokenizer.padding_side = "right"
    if model.config.pad_token_id != tokenizer.pad_token_id:
        model.config.pad_token_id = tokenizer.pad_token_id
    return decisions


def longest_input(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """The most tokens the model can read at once."""
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < NO_LIMIT else []
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if positions:
        # RoBERTa and its like number positions from padding_idx + 1.
        offsets = [
            module.padding_idx
            for name, module in model.named_modules()
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        ]
        limits.append(int(positions) - (offsets[0] + 1 if offsets else 0))
    return min(limits) if limits else NO_LIMIT


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(size for trainable, size in sizes if trainable), sum(size for _, size in sizes)
