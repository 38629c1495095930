"""Loads tokenizers and models, and finds in them what decisions need."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError
from tunesmith.models.remote_code import VARIABLE, hash_of_code, is_trusted, refusal
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
    """Names of the parameters that are new: not in the checkpoint, or outside the pretrained body of a model for labels."""
    decisions: list[Decision]
    new_token_ids: tuple[int, ...] = ()
    """Tokens that were added after loading: rows of the embeddings that nothing has been learnt for."""


def has_package(module: str) -> bool:
    """Whether a package is installed."""
    return find_spec(module) is not None


def require_package(module: str, extra: str) -> None:
    """Raises InputError when a package of one of tunesmith's extras is not installed."""
    if not has_package(module):
        fix = f"pip install 'tunesmith[{extra}]'"
        raise InputError("usage.missing_extra", f"this needs {module}, which is not installed", found=f"no module {module}", fix=fix)


def import_without_bitsandbytes() -> None:
    """Imports what transformers trains with, peft among it, as where bitsandbytes is not installed; afterwards it is there as before.

    peft imports it for one function that is not used here, and it imports torch's compiler: a fifth of the time before the first step.
    """
    if "bitsandbytes" in sys.modules:
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        import transformers.trainer_utils  # noqa: F401
    finally:
        del sys.modules["bitsandbytes"]


def new_model(path: Path, task: Task, head: dict[str, Any], seed: int, name: str) -> LoadedModel:
    """A model of the configuration in a folder, in fp32, its weights drawn from `seed`."""
    import transformers

    import_without_bitsandbytes()
    transformers.set_seed(seed)
    config = load_config(path)
    config.update(head)
    model = getattr(transformers, task.auto_model).from_config(config, dtype="float32")
    model.config.use_cache = False
    model.name_or_path = name
    _, num_parameters = count_parameters(model)
    return LoadedModel(model, frozenset(), [Decision("weights", f"{num_parameters:,} new", "drawn at random from train.seed")])


WRITTEN_BY_SAVE_PRETRAINED = "check that the folder was written by save_pretrained (safetensors; no pickle) for this kind of task"


@contextmanager
def load_errors(path: Path, what: str, fix: str = WRITTEN_BY_SAVE_PRETRAINED) -> Iterator[None]:
    """Whatever upstream raises while it reads a file, in our words."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        if "trust_remote_code" in str(error):
            raise refusal(what, path) from error
        raise InputError(
            "model.load",
            f"the {what} cannot be loaded",
            where=str(path),
            found=f"{type(error).__name__}: {message}",
            fix=fix,
        ) from error


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder."""
    from transformers import AutoTokenizer

    with load_errors(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=is_trusted(path))
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

    with load_errors(path, "model's configuration"):
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=is_trusted(path))


def pretrained_labels(config: Any) -> tuple[str, ...]:
    """The labels of a checkpoint that has a head, in its order; LABEL_0, LABEL_1 count as none."""
    labels = [str(config.id2label[index]) for index in sorted(config.id2label or {})]
    return () if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else tuple(labels)


def load_model(path: Path, task: Task, head: dict[str, Any], seed: int, quantization: Any = None, reference: str = "") -> LoadedModel:
    """The model in a folder with the head that the task needs; a new head is drawn from `seed`.

    Weights are in fp32, those of linear layers as `quantization` (transformers' config) says. `reference` is what adapters that
    are trained on the model will name as their base: by default the folder.
    Raises InputError when the folder's own weights are quantised in another way.
    """
    import torch
    import transformers

    is_quantized = _check_quantization(path, quantization)
    if quantization is None:
        import_without_bitsandbytes()
    with load_errors(path, "model"):
        transformers.set_seed(seed)
        model, info = getattr(transformers, task.auto_model).from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=is_trusted(path),
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **({} if is_quantized else {"quantization_config": quantization}),
            **head,
        )
    _settle(model)
    new = set(info["missing_keys"]) | {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    if model.base_model is model:
        new = {name for name in new if in_body(model, name)}
    decisions = []
    if is_trusted(path):
        decisions.append(Decision("model code", hash_of_code(path), f"its own Python runs, as {VARIABLE} says"))
    if new:
        decisions.append(
            Decision("new weights", ", ".join(sorted(new)), "not in the checkpoint: drawn at random from train.seed, and trained")
        )
    if model.get_output_embeddings() is None:
        new |= {name for name, _ in model.named_parameters() if model.base_model is not model and not in_body(model, name)}
    unused = sorted(info["unexpected_keys"])
    if unused:
        shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        decisions.append(Decision("unused weights", shown, "in the checkpoint, but not in a model for this task"))
    model.config.use_cache = False
    model.name_or_path = reference or str(path)
    return LoadedModel(model, frozenset(new), decisions)


QUANTIZATION_KEYS: dict[str, tuple[str, dict[Any, str]]] = {
    "load_in_4bit": ("method.bits", {True: "4", False: "8"}),
    "bnb_4bit_quant_type": ("method.quant_type", {"nf4": "nf4", "fp4": "fp4"}),
    "bnb_4bit_use_double_quant": ("method.double_quant", {True: "true", False: "false"}),
}
"""What a checkpoint of bitsandbytes says of its weights, and the setting that says the same."""


def _check_quantization(path: Path, quantization: Any) -> bool:
    """Whether the folder's own weights are quantised; if so, refuses a method that expects others."""
    own = getattr(load_config(path), "quantization_config", None)
    if own is None:
        return False
    own = own if isinstance(own, dict) else own.to_dict()
    problem, found = "the checkpoint's weights are quantised", str(own.get("quant_method", "unknown"))
    fix = "start from the checkpoint with 16 or 32 bits a weight"
    if found != "bitsandbytes":
        raise InputError("spec.conflict", problem, where="model.name", found=found, fix=fix)
    if quantization is None:
        problem = f"{problem}: only adapters can be trained on them"
        raise InputError("spec.conflict", problem, where="method", found=found, fix="method: qlora")
    asked = quantization.to_dict()
    keys = QUANTIZATION_KEYS if own.get("load_in_4bit") else {"load_in_4bit": QUANTIZATION_KEYS["load_in_4bit"]}
    settings = [f"{field}={words[own[key]]}" for key, (field, words) in keys.items() if own.get(key, asked[key]) != asked[key]]
    if settings:
        raise InputError("spec.conflict", f"{problem} in another way", where=str(path), found=" ".join(settings), fix=" ".join(settings))
    return True


def _settle(model: PreTrainedModel) -> None:
    """Makes a quantised model compute the same before and after it was first evaluated, or computed in bf16.

    On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights anew at the first forward pass in eval mode: their scales are
    rounded to bf16, and from then on no gradient passes through them. It puts the bias of a layer into the type of what enters, for good.
    At 8 bits it logs one line for each layer and pass.
    """
    if not getattr(model, "is_quantized", False):
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, (Linear4bit, Linear8bitLt)) and module.bias is not None:
            _keep_bias(module)


def _keep_bias(module: Any) -> None:
    """Gives the layer its own bias back after each pass."""
    held: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda layer, _: held.append(layer.bias.data))
    module.register_forward_hook(lambda layer, *_: setattr(layer.bias, "data", held.pop()), always_call=True)


def load_trained(path: Path, auto_model: str, quantization: Any = None, head: dict[str, Any] | None = None) -> PreTrainedModel:
    """A model that a run saved, in fp32 and eval mode, its base quantised as it was when the model was trained.

    `head` gives a base model the head that a task needs, for adapters to fill.

    Raises InputError when it is not to be had, as when the base of adapters was moved.
    """
    import transformers

    alone = base_of(path)
    base = alone or str(path)
    if quantization is None and (path / "adapter_config.json").exists():
        import_without_bitsandbytes()
    fix = f"put the base model where it was: {base}, or `tunesmith models pull` it" if alone else WRITTEN_BY_SAVE_PRETRAINED
    with load_errors(Path(base), "base model of the adapters" if alone else "trained model", fix):
        model = getattr(transformers, auto_model).from_pretrained(
            base,
            local_files_only=True,
            trust_remote_code=is_trusted(base),
            use_safetensors=True,
            dtype="float32",
            quantization_config=quantization,
            ignore_mismatched_sizes=bool(head),
            **(head or {}),
        )
    if alone:
        with load_errors(path, "adapters"):
            grow_embeddings(model, path)
            model.load_adapter(str(path))
        take_generation_config(model, path)
    _settle(model)
    return model.eval()


def take_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Lets a model end its answers where that of a run does: a base model does not know the tokens that end a template's turns."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        with load_errors(folder, "generation config"):
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def base_of(adapters: Path) -> str:
    """The base that adapters name; empty for a whole model, or for adapters that lie beside their base and are loaded with it."""
    if not (adapters / "adapter_config.json").exists() or (adapters / "config.json").exists():
        return ""
    with load_errors(adapters, "configuration of the adapters"):
        return str(json.loads((adapters / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])


def grow_embeddings(model: PreTrainedModel, adapters: Path) -> None:
    """Gives the base model of adapters rows for the tokens that were added in training; the adapters hold their values."""
    rows = json.loads((adapters / "adapter_config.json").read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    needed = 1 + max((index for indices in rows.values() for index in indices), default=-1)
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)


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
    """The most tokens the model can read at once; of one that reads any length, as many as it was trained on."""
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


def reads_any_length(config: Any) -> bool:
    """Whether a model's positions are relative alone (T5 and its kin): then nothing in it ends where its training did."""
    return getattr(config, "max_position_embeddings", None) is None and hasattr(config, "relative_attention_num_buckets")


def in_body(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter or module of this name belongs to the pretrained body. Of a model without a head, that is all of it but the
    pooler: hidden states are its answer, and they do not pass there; of one whose body is no module of its own (T5), all but the head."""
    if model.base_model is not model:
        return name.startswith(f"{model.base_model_prefix}.")
    head = model.get_output_embeddings()
    outside = ["pooler", *(own for own, module in model.named_modules() if head is not None and module is head)]
    return not any(f"{name}.".startswith(f"{own}.") for own in outside)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(size for trainable, size in sizes if trainable), sum(size for _, size in sizes)
