"""Adapters on a model: where they go, what else is trained, and whether they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.methods.lora.section import LoraSpec
from tunesmith.models.load import LoadedModel, grow_embeddings, in_body
from tunesmith.registry import Decision

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel


def decide(section: LoraSpec, model: PreTrainedModel) -> list[Decision]:
    """`target_modules: auto` becomes every kind of linear layer in the pretrained body.

    Raises InputError when a setting names what the model does not have, or does not suit it.
    """
    linear = linear_modules(model)
    targets, decisions = section.target_modules, []
    if targets == "auto":
        targets = sorted({_ending(name) for name in linear})
        decisions.append(Decision("method.target_modules", targets, f"all {len(linear)} linear layers of the pretrained body"))
    _check_names("target_modules", targets, linear, "layer")
    _check_names("modules_to_save", section.modules_to_save, [name for name, _ in model.named_modules()], "module")
    adapted = [name for name in linear if any(_is_end(target, name) for target in targets)]
    _check_bias(section, model, adapted)
    _check_initialisation(section, model, adapted)
    return decisions


def _is_end(end: str, name: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _check_names(field: str, ends: Iterable[str], names: Sequence[str], kind: str) -> None:
    for end in ends:
        if not any(_is_end(end, name) for name in names):
            raise InputError(
                "method.no_target",
                f"{field} names a {kind} that the model does not have",
                where=f"method.{field}",
                found=end,
                fix=did_you_mean(end, sorted({name.rpartition(".")[2] for name in names} - {""})),
            )


def _check_bias(section: LoraSpec, model: PreTrainedModel, adapted: list[str]) -> None:
    if section.bias == "none":
        return
    names = adapted if section.bias == "lora_only" else [name for name, _ in model.named_modules()]
    if all(getattr(model.get_submodule(name), "bias", None) is None for name in names):
        raise InputError(
            "spec.no_effect", "the model has no such biases", where="method.bias", found=f"bias: {section.bias}", fix="leave it out"
        )


def _check_initialisation(section: LoraSpec, model: PreTrainedModel, adapted: list[str]) -> None:
    start = section.init_lora_weights
    if start in (True, "gaussian", "orthogonal"):
        return
    where = "method.init_lora_weights"
    if start == "olora" and any(_is_conv1d(model, name) for name in adapted):
        raise InputError("spec.conflict", "olora does not know the layers of this model (Conv1D)", where=where, fix="pissa, or true")
    largest = min(min(model.get_submodule(name).weight.shape) for name in adapted)
    if section.rank > largest:
        raise InputError(
            "spec.conflict",
            f"{start} cannot make an adapter of a higher rank than its layer has",
            where=where,
            found=f"rank: {section.rank}",
            fix=f"method.rank={largest}, or init_lora_weights: true",
        )


def _is_conv1d(model: PreTrainedModel, name: str) -> bool:
    return type(model.get_submodule(name)).__name__ == "Conv1D"


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the pretrained body."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D)) and in_body(model, name)]


def _ending(name: str) -> str:
    """The end of a layer's name that layers of its kind share: what follows the number of its block."""
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbered[-1] + 1 :]) if numbered else name


def attach(section: LoraSpec, loaded: LoadedModel, peft_task_type: str | None) -> PreTrainedModel:
    """The model with adapters; only they, the rows of new tokens, the head and other new weights require gradients."""
    import peft

    model = loaded.model
    rows, whole = _new_token_rows(model, loaded.new_token_ids)
    modules_to_save = sorted({*modules_of(model, loaded.head_parameters), *section.modules_to_save, *whole})
    config = peft.LoraConfig(
        task_type=peft_task_type,
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        bias=section.bias,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        init_lora_weights=section.init_lora_weights,
        target_modules=list(section.target_modules),
        modules_to_save=modules_to_save,
        trainable_token_indices=rows or None,
        ensure_weight_tying=any(_holds_tied(model, name) for name in modules_to_save),
        fan_in_fan_out=any(_is_conv1d(model, name) for name in linear_modules(model)),
    )
    adapted = peft.get_peft_model(model, config)
    if str(section.init_lora_weights).startswith(("pissa", "olora")):
        start = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        # What the base lost to the adapters: saving subtracts it from them.
        adapted.initial_adapters = {name: tensor.clone() for name, tensor in start.items() if ".lora_A." in name or ".lora_B." in name}
    return adapted


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the head of a language model is its embedding matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _new_token_rows(model: PreTrainedModel, ids: tuple[int, ...]) -> tuple[dict[str, list[int]], list[str]]:
    """(rows to train of which modules, modules to train whole) for the tokens that were added."""
    if not ids:
        return {}, []
    names = {id(module): name for name, module in model.named_modules()}
    rows = {names[id(model.get_input_embeddings())]: list(ids)}
    head = model.get_output_embeddings()
    if head is None or is_tied(model):
        return rows, []
    # PEFT's layer for single rows computes without the bias.
    if head.bias is not None:
        return rows, [names[id(head)]]
    return {**rows, names[id(head)]: list(ids)}, []


def modules_of(model: PreTrainedModel, head_parameters: frozenset[str]) -> list[str]:
    """The modules that hold the new parameters: whole ones outside the pretrained body, single layers inside it.

    Of a head whose matrix is the embeddings, single layers too: the matrix stays, and a new bias of its own stays zero.
    """
    single = {name.rpartition(".")[0] for name in head_parameters}
    whole = {name if in_body(model, f"{name}.") else name.partition(".")[0] for name in single}
    if not any(_holds_tied(model, name) for name in whole):
        return sorted(whole)
    return sorted(name for name in single if not _holds_tied(model, name))


def _holds_tied(model: PreTrainedModel, name: str) -> bool:
    """Whether a module holds the matrix that is both head and embeddings."""
    tied = model.get_input_embeddings().weight
    return is_tied(model) and any(parameter is tied for parameter in model.get_submodule(name).parameters())


def idle_adapters(model: Any) -> list[str]:
    """Names of the adapters' tensors that a backward pass did not reach.

    B starts at zero and so A's first gradient is zero: an adapter is idle only when all of its tensors have no gradient.
    """
    layers: dict[str, list[tuple[str, bool]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" in name:
            reached = parameter.grad is not None and bool(parameter.grad.count_nonzero())
            layers.setdefault(name.partition(".lora_")[0], []).append((name, reached))
    return [name for tensors in layers.values() if not any(reached for _, reached in tensors) for name, _ in tensors]


def merge(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with the adapters of a folder added to its weights.

    Raises InputError when the base is quantised: a sum of 4-bit and 32-bit weights is neither.
    """
    import peft

    if getattr(base, "is_quantized", False):
        fix = "use the adapters as they are, or train them on the checkpoint that was quantised"
        raise InputError("spec.conflict", "adapters cannot be merged into a quantised base", where=str(folder), fix=fix)
    grow_embeddings(base, folder)
    return peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
