"""Freezing: only the last blocks, what follows them and the head are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.models.blocks import find_blocks
from tunesmith.models.load import in_body
from tunesmith.registry import Decision, Method
from tunesmith.spec import Auto, NamedSection

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from tunesmith.models.load import LoadedModel


class FreezeSpec(NamedSection):
    """The last blocks, the norm or pooler after them and the head are trained; what comes before is frozen."""

    name: str = "freeze"
    """`freeze`."""
    num_blocks: Annotated[int, Field(ge=0)] = 2
    """How many blocks (transformer layers) are trained, counted from the last; 0 trains what follows them."""
    train_embeddings: bool = False
    """Whether the embeddings are trained."""
    train_head: bool | Auto = "auto"
    """Whether the head is trained; `auto` is yes, unless the head of a language model is its frozen embedding matrix."""


def decide(section: FreezeSpec, model: PreTrainedModel) -> list[Decision]:
    """`train_head: auto`, and what it means where head and embeddings are one matrix.

    Raises InputError when there are fewer blocks, when nothing would be trained, or when a tied matrix is to be both.
    """
    _, blocks = blocks_of(model)
    if section.num_blocks > len(blocks):
        raise InputError(
            "method.no_target",
            "the model has fewer blocks",
            where="method.num_blocks",
            found=f"num_blocks: {section.num_blocks}",
            fix=f"at most {len(blocks)}",
        )
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return [Decision("method.train_head", True, "the head stands after the blocks")] if section.train_head == "auto" else []
    if section.train_head == "auto":
        because = "the head is the embedding matrix: both are " + ("trained" if section.train_embeddings else "frozen")
        return [Decision("method.train_head", section.train_embeddings, because)]
    if section.train_embeddings and not section.train_head:
        fix = "leave train_head out, or train_embeddings: false"
        raise InputError("spec.conflict", "the head is the embedding matrix of this model", where="method.train_head", fix=fix)
    return [Decision("embeddings", "trained", "they are the head's matrix")] if section.train_head and not section.train_embeddings else []


def blocks_of(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Name and list of the blocks.

    Raises InputError when there are none.
    """
    found = find_blocks(model)
    if found is None:
        fix = "method: full, or lora"
        raise InputError(
            "method.no_target", "the model has no list of blocks to freeze", where="method", found=type(model).__name__, fix=fix
        )
    return found


def attach(section: FreezeSpec, loaded: LoadedModel, peft_task_type: str | None) -> PreTrainedModel:
    """The model itself; blocks before the last `num_blocks` and, unless asked for, the embeddings require no gradients.

    Raises InputError when new weights, which stand for nothing yet, would be frozen.
    """
    model = loaded.model
    parts = _parts(model)
    _, blocks = blocks_of(model)
    model.requires_grad_(False)
    trained = {*parts["after"], *(parts["head"] if section.train_head else ()), *(parts["embeddings"] if section.train_embeddings else ())}
    # A head that is tied to the embeddings is one parameter with two names.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in trained:
            parameter.requires_grad_(True)
    for block in list(blocks)[len(blocks) - section.num_blocks :]:
        block.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("spec.conflict", "nothing would be trained", where="method", fix="method.num_blocks=1, or train_head: true")
    _check_new_weights(model, loaded)
    return model


def _check_new_weights(model: PreTrainedModel, loaded: LoadedModel) -> None:
    new = set(loaded.head_parameters)
    if loaded.new_token_ids:
        matrices = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
        new |= {name for name, parameter in model.named_parameters() if any(parameter is matrix for matrix in matrices)}
    for name, parameter in model.named_parameters():
        if name in new and not parameter.requires_grad:
            field = "train_embeddings" if parameter is model.get_input_embeddings().weight else "train_head"
            problem = "weights that are not in the checkpoint would stay random"
            raise InputError("spec.conflict", problem, where=f"method.{field}", found=name, fix=f"method.{field}=true")


def _parts(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names of the parameters outside the blocks: `embeddings`, `after` (norm, pooler) and `head`.

    What stands before the blocks, and any embedding of the body, counts as embeddings. Where the embeddings are the head's matrix,
    the rest of the head (the transform of a masked language model, a bias) counts as after.
    """
    import torch

    blocks, _ = blocks_of(model)
    embeddings = {
        f"{name}.{inner}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        for inner, _ in module.named_parameters()
    }
    parts: dict[str, list[str]] = {"embeddings": [], "after": [], "head": []}
    seen_blocks, matrix = False, model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    is_tied = output is not None and output.weight is matrix
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(f"{blocks}."):
            seen_blocks = True
        elif not in_body(model, name):
            parts["after" if is_tied and parameter is not matrix else "head"].append(name)
        else:
            parts["after" if seen_blocks and name not in embeddings else "embeddings"].append(name)
    return parts


def save(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """All weights."""
    model.save_pretrained(folder)


FREEZE = Method(
    name="freeze",
    summary="train the last blocks and the head",
    spec=FreezeSpec,
    learning_rate=5e-5,
    decide=decide,
    attach=attach,
    save=save,
)
