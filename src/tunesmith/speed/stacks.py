"""Linear layers that read one input, as one product with their adapters.

Their weights are stacked, W [out, in], those of LoRA's A below them, s A [ranks, in], and B beside them. Base and adapters then are one
product, y = [x, z] [W, B]' with z = x s A', and so is what the gradient g of y makes that of x: [g, g B] [W; s A]. Whoever makes x or g
writes it into a room, where there are columns for the rest. The copies are in the type that products are computed in and made again when
a weight has changed, as autocast does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tunesmith.speed.instances import compute_dtype
from tunesmith.speed.kernels import draw_seed
from tunesmith.speed.stack_products import Gradients, Products, Seeds, products_of

PARAMETERS = ("weight", "bias", "lora_a", "lora_b")
LINE_BYTES = 64
"""Of the cache."""
STACKS: WeakKeyDictionary[torch.nn.Module, list[Stack]] = WeakKeyDictionary()
"""Those that a model is computed by now."""


@dataclass(frozen=True)
class Layer:
    """A linear layer and its adapter, if it has one."""

    module: torch.nn.Module
    """What the model calls: the layer, or PEFT's wrapper of it."""
    weight: torch.Tensor
    bias: torch.Tensor | None
    lora_a: torch.Tensor | None = None
    """[rank, in]"""
    lora_b: torch.Tensor | None = None
    """[out, rank]"""
    scaling: float = 1.0
    dropout: torch.nn.Module | None = None
    """What drops elements of the adapter's input."""

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """All that it is computed from, by name."""
        return {name: value for name in PARAMETERS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Copy:
    """A weight in the type of products, which whoever changes the weight may write as well."""

    weight: torch.Tensor
    place: torch.Tensor
    """Of its shape, contiguous."""
    states: list[tuple[int, int]]
    number: int

    def note(self) -> None:
        """Notes that the place holds what the weight is now."""
        self.states[self.number] = self.weight.data_ptr(), self.weight._version


class Stack:
    """Layers that read one input, and the matrices they are computed from."""

    def __init__(self, layers: list[Layer], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.weight_dtype = layers[0].weight.dtype
        self.parameters = [parameter for layer in layers for parameter in layer.parameters.values()]
        self.kinds = [(kind, number) for number, layer in enumerate(layers) for kind in layer.parameters]
        """Of each parameter, its name in its layer, and which layer that is."""
        self.adapters = [parameter for parameter, (kind, _) in zip(self.parameters, self.kinds, strict=True) if kind.startswith("lora")]
        self.in_features = layers[0].weight.shape[1]
        self.out_sizes = [layer.weight.shape[0] for layer in layers]
        self.out_features = sum(self.out_sizes)
        self.ranks = [0 if layer.lora_a is None else layer.lora_a.shape[0] for layer in layers]
        line = LINE_BYTES // dtype.itemsize
        self.between = -(-sum(self.ranks) // line) * line
        """Columns of what the adapters' A make of an input, and of zeros: rows of a length that kernels can read where they lie."""
        self.placed_layers = list(zip(layers, zip(_slices(self.out_sizes), _slices(self.ranks), strict=True), strict=True))
        """Each with its columns of the outputs, and of what is between."""
        self._made: dict[str, tuple[list[tuple[int, int]], torch.Tensor]] = {}
        """The matrices in `dtype`, the run's; those in another, which only a trial asks for, are not kept."""
        self._products: Products | None = None
        self._adapters: list[tuple[int, int]] = []
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def forward(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """What layer `number` makes of its input; the first to be asked computes all, the others find theirs."""
        if self._input is not hidden or number not in self._outputs:
            self._input, self._outputs = hidden, dict(enumerate(_Stacked.apply(hidden, self, *self.parameters)))  # type: ignore[no-untyped-call]
        found = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return found

    def split(self, outputs: torch.Tensor) -> list[torch.Tensor]:
        """Of the columns, those that each layer makes."""
        return list(outputs.split_with_sizes(self.out_sizes, 1))

    def seeds(self) -> Seeds:
        """Drawn for those that drop now."""
        drops = [layer.dropout is not None and layer.dropout.training for layer in self.layers]
        return [draw_seed() if drop else None for drop in drops] if any(drops) else None

    def kinds_of(self, wanted: Sequence[bool]) -> set[str]:
        """What those of the parameters are called in their layers."""
        return {kind for (kind, _), is_wanted in zip(self.kinds, wanted, strict=True) if is_wanted}

    def of_each(self, found: Gradients, wanted: Sequence[bool]) -> list[torch.Tensor | None]:
        """The gradients of those parameters that are wanted, in the order of all; None for the others."""
        of_each: list[torch.Tensor | None] = [None] * len(wanted)
        for index, is_wanted in enumerate(wanted):
            if is_wanted:
                kind, number = self.kinds[index]
                grad, dtype = found[kind][number], self.parameters[index].dtype
                of_each[index] = grad if grad.dtype == dtype else grad.to(dtype)
        return of_each

    def products(self, dtype: torch.dtype) -> Products:
        """Who computes it in a type, from matrices that hold what the parameters are now."""
        matrices, is_kept = (self.weight(dtype), self.bias(dtype)), dtype == self.dtype
        products = self._products if is_kept and self._products is not None else products_of(self, *matrices)
        adapters = _state_of(self.adapters)
        if adapters and not (is_kept and adapters == self._adapters):
            products.place_adapters()
        if is_kept:
            self._products, self._adapters = products, adapters
        return products

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """[out + between, in + between]: the stacked weights, room for s A below them and B beside them, and zeros."""
        shape = self.out_features + self.between, self.in_features + self.between
        return self._stacked("weight", dtype, [layer.weight for layer in self.layers], shape)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """[out], or None where no layer has a bias."""
        if all(layer.bias is None for layer in self.layers):
            return None
        pairs = zip(self.layers, self.out_sizes, strict=True)
        parts = [layer.weight.new_zeros(size) if layer.bias is None else layer.bias for layer, size in pairs]
        return self._stacked("bias", dtype, parts, (self.out_features,))

    def room(self, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """[rows, in + between]: for an input, and beside it what the adapters' A make of it."""
        return torch.empty(rows, self.in_features + self.between, dtype=dtype)

    def input(self, room: torch.Tensor) -> torch.Tensor:
        """[rows, in]: the columns of an input."""
        return room[:, : self.in_features] if self.between else room

    def placed(self, x: torch.Tensor) -> torch.Tensor:
        """An input in its room; x [rows, in] itself where there are no adapters."""
        if x.shape[1] == self.in_features + self.between:
            return x.contiguous()
        room = self.room(len(x), x.dtype)
        self.input(room).copy_(x)
        return room

    def grad_room(self, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """[rows, out + between]: for the gradient of the outputs, and beside it what the adapters' B make of it."""
        return torch.empty(rows, self.out_features + self.between, dtype=dtype)

    def output(self, grad_room: torch.Tensor) -> torch.Tensor:
        """[rows, out]: the columns of the gradient of the outputs."""
        return grad_room[:, : self.out_features] if self.between else grad_room

    def placed_grads(self, grads: Sequence[torch.Tensor | None], rows: int, dtype: torch.dtype) -> torch.Tensor:
        """The gradient [rows, size] of each layer's output, zeros where there is none, in a room; without adapters, the matrix itself that
        they are columns of."""
        if not self.between and (whole := _matrix_of(grads, self.out_features, dtype)) is not None:
            return whole
        room = self.grad_room(rows, dtype)
        for place, grad in zip(self.split(self.output(room)), grads, strict=True):
            place.zero_() if grad is None else place.copy_(grad)
        return room

    def _stacked(self, name: str, dtype: torch.dtype, parts: list[Any], shape: tuple[int, ...]) -> torch.Tensor:
        """The parts below each other in a matrix that is kept, and filled again when one of them has changed."""
        state = _state_of(parts)
        known, matrix = self._made.get(name, ([], None)) if dtype == self.dtype else ([], None)
        if matrix is not None and known == state:
            return matrix
        with torch.inference_mode(False), torch.no_grad():
            if matrix is None:
                matrix = torch.zeros(shape, dtype=dtype)
            row = 0
            for part in parts:
                place = matrix[row : row + len(part)]
                if place.data_ptr() != part.data_ptr():
                    (place[:, : self.in_features] if name == "weight" else place).copy_(part)
                row += len(part)
        if dtype == self.dtype:
            known[:] = state  # the list that copies have, too
            self._made[name] = known, matrix
        return matrix

    def copies(self) -> list[Copy]:
        """Those in bf16 of weights and biases that are trained."""
        if self.dtype != torch.bfloat16 or any(self.ranks):
            return []
        found = []
        for name in ("weight", "bias"):
            parts = [getattr(layer, name) for layer in self.layers]
            states, matrix = self._made.get(name, ([], None))
            if matrix is not None and all(part is not None and part.requires_grad for part in parts):
                found += [Copy(*those) for those in zip(parts, matrix.split_with_sizes(self.out_sizes), [states] * len(parts), count())]
        return found

    def frozen(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each weight and the part of the matrix that holds it, where none of them is trained."""
        if any(layer.weight.requires_grad for layer in self.layers):
            return []
        places = self.weight(self.dtype)[: self.out_features, : self.in_features].split_with_sizes(self.out_sizes)
        return list(zip((layer.weight for layer in self.layers), places, strict=True))


class _Stacked(torch.autograd.Function):
    """What a stack makes of its input, one output for each layer."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, stack: Stack, *parameters: torch.Tensor) -> Any:
        dtype, seeds = compute_dtype(hidden), stack.seeds()
        with torch.autocast(hidden.device.type, enabled=False):
            room = stack.placed(hidden.reshape(-1, stack.in_features).to(dtype))
            outputs = stack.products(dtype).multiply(room, seeds)
        ctx.save_for_backward(room)
        ctx.stack, ctx.seeds, ctx.shape, ctx.hidden_dtype = stack, seeds, hidden.shape[:-1], hidden.dtype
        return tuple(part.view(*hidden.shape[:-1], -1) for part in stack.split(outputs))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        (room,), stack = ctx.saved_tensors, ctx.stack
        parts = [None if grad is None else grad.reshape(-1, size) for grad, size in zip(grads, stack.out_sizes, strict=True)]
        needs_hidden, _, *wanted = ctx.needs_input_grad
        products, grad_room = stack.products(room.dtype), stack.placed_grads(parts, len(room), room.dtype)
        of_input = products.differentiate(grad_room, ctx.seeds, needs_hidden)
        if of_input is not None:
            of_input = of_input.reshape(*ctx.shape, stack.in_features).to(ctx.hidden_dtype)
        if not any(wanted):
            return of_input, None, *(None for _ in wanted)
        found = products.of_parameters(room, grad_room, ctx.seeds, stack.kinds_of(wanted))
        return of_input, None, *stack.of_each(found, wanted)


def _matrix_of(parts: Sequence[torch.Tensor | None], width: int, dtype: torch.dtype) -> torch.Tensor | None:
    """The matrix that the parts are the columns of, if there is one."""
    first = parts[0]
    if first is None:
        return None
    place = first.storage_offset()
    for part in parts:
        if part is None or (part.dtype, part.stride(), part.storage_offset()) != (dtype, (width, 1), place):
            return None
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        place += part.shape[1]
    return first.as_strided((len(first), width), (width, 1))


def _state_of(parameters: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """What changes when one of them does."""
    return [(parameter.data_ptr(), parameter._version) for parameter in parameters]


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes begin and end, one after the other."""
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
