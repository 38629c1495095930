"""Linear layers that read one input, as one product with their adapters.

Their weights are stacked, W [out, in]; those of LoRA's A too, s A [ranks, in], and B stands beside W: y = [x, x s A'] [W, B]' is one
product for base and adapters, and so is its gradient. The copies are in the type that products are computed in and made again when a weight
has changed, as autocast does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tunesmith.native.matmul import add_product, product
from tunesmith.speed.instances import compute_dtype
from tunesmith.speed.kernels import draw_seed, seeded_dropout

WIDTH_MULTIPLE = 32
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
    def parameters(self) -> list[torch.Tensor]:
        """All that it is computed from."""
        return [parameter for parameter in (self.weight, self.bias, self.lora_a, self.lora_b) if parameter is not None]


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
        self.parameters = [parameter for layer in layers for parameter in layer.parameters]
        self.in_features = layers[0].weight.shape[1]
        self.out_sizes = [layer.weight.shape[0] for layer in layers]
        self.ranks = [0 if layer.lora_a is None else layer.lora_a.shape[0] for layer in layers]
        self.inner = slice(self.in_features, self.in_features + sum(self.ranks))
        """Where, beside the input, is what the adapters' A make of it."""
        self.width = -(-self.inner.stop // WIDTH_MULTIPLE) * WIDTH_MULTIPLE if any(self.ranks) else self.in_features
        """Of all, and of columns of zeros: rows of a length that the kernel can read where they lie."""
        self._made: dict[str, tuple[list[tuple[int, int]], torch.Tensor]] = {}
        """The matrices in `dtype`, the run's; those in another, which only a trial asks for, are not kept."""
        self._beside: list[tuple[int, int]] = []
        """The B that stand in the weights, and their versions."""
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

    def seeds(self) -> list[int | None] | None:
        """A seed for each layer whose adapter drops elements of its input now; None when none does."""
        drops = [layer.dropout is not None and layer.dropout.training for layer in self.layers]
        return [draw_seed() if drop else None for drop in drops] if any(drops) else None

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """[out, in + ranks + some of zeros]: the stacked weights, and B beside each."""
        bases = self._stacked("weight", dtype, [layer.weight for layer in self.layers], (sum(self.out_sizes), self.width))
        if not any(self.ranks):
            return bases
        state = [(layer.lora_b.data_ptr(), layer.lora_b._version) for layer in self.layers if layer.lora_b is not None]
        if dtype == self.dtype:
            if self._beside == state:
                return bases
            self._beside = state
        row, column = 0, self.in_features
        for layer, size, rank in zip(self.layers, self.out_sizes, self.ranks, strict=True):
            if layer.lora_b is not None:
                bases[row : row + size, column : column + rank] = layer.lora_b.detach()
            row, column = row + size, column + rank
        return bases

    def lora_a(self, dtype: torch.dtype) -> torch.Tensor:
        """[ranks, in]: the stacked s A."""
        adapted = [layer for layer in self.layers if layer.lora_a is not None]
        scales = [layer.scaling for layer in adapted]
        return self._stacked("lora_a", dtype, [layer.lora_a for layer in adapted], (sum(self.ranks), self.in_features), scales)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """[out], or None where no layer has a bias."""
        if all(layer.bias is None for layer in self.layers):
            return None
        pairs = zip(self.layers, self.out_sizes, strict=True)
        parts = [layer.weight.new_zeros(size) if layer.bias is None else layer.bias for layer, size in pairs]
        return self._stacked("bias", dtype, parts, (sum(self.out_sizes),))

    def room(self, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """[rows, in + ranks + some of zeros], which stand there: for an input, and beside it what the adapters' A make of it."""
        room = torch.empty(rows, self.width, dtype=dtype)
        if self.width > self.inner.stop:
            room[:, self.inner.stop :] = 0
        return room

    def placed(self, x: torch.Tensor) -> torch.Tensor:
        """An input in its room; x [rows, in] itself where there are no adapters."""
        if x.shape[1] == self.width:
            return x
        room = self.room(len(x), x.dtype)
        room[:, : self.in_features] = x
        return room

    def input(self, room: torch.Tensor) -> torch.Tensor:
        """[rows, in]: the columns of an input."""
        return room[:, : self.in_features] if any(self.ranks) else room

    def _stacked(
        self, name: str, dtype: torch.dtype, parts: list[Any], shape: tuple[int, ...], scales: Sequence[float] | None = None
    ) -> torch.Tensor:
        """The parts, each times its scale, below each other in a matrix that is kept, and filled again when one of them has changed."""
        state = [(part.data_ptr(), part._version) for part in parts]
        known, matrix = self._made.get(name, ([], None)) if dtype == self.dtype else ([], None)
        if matrix is not None and known == state:
            return matrix
        with torch.inference_mode(False), torch.no_grad():
            if matrix is None:
                matrix = torch.zeros(shape, dtype=dtype)
            row = 0
            for number, part in enumerate(parts):
                place = matrix[row : row + len(part)]
                if scales is not None:
                    torch.mul(part, scales[number], out=place)
                elif place.data_ptr() != part.data_ptr():
                    (place[:, : self.in_features] if name == "weight" else place).copy_(part)
                row += len(part)
        if dtype == self.dtype:
            self._made[name] = state, matrix
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
        places = self.weight(self.dtype)[:, : self.in_features].split_with_sizes(self.out_sizes)
        return list(zip((layer.weight for layer in self.layers), places, strict=True))


class _Stacked(torch.autograd.Function):
    """What a stack makes of its input, one output for each layer."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, stack: Stack, *parameters: torch.Tensor) -> Any:
        dtype, seeds = compute_dtype(hidden), stack.seeds()
        with torch.autocast(hidden.device.type, enabled=False):
            room = stack.placed(hidden.reshape(-1, stack.in_features).to(dtype))
            outputs = multiply(stack, room, seeds)
        ctx.save_for_backward(room)
        ctx.stack, ctx.seeds, ctx.shape, ctx.hidden_dtype = stack, seeds, hidden.shape[:-1], hidden.dtype
        return tuple(part.view(*hidden.shape[:-1], -1) for part in stack.split(outputs))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        (room,), stack = ctx.saved_tensors, ctx.stack
        parts = [
            room.new_zeros(len(room), size) if grad is None else grad.reshape(-1, size).to(room.dtype)
            for grad, size in zip(grads, stack.out_sizes, strict=True)
        ]
        needs_hidden, _, *wanted = ctx.needs_input_grad
        grad_hidden, found = differentiate(stack, side_by_side(parts), room, ctx.seeds, needs_hidden, wanted)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.reshape(*ctx.shape, stack.in_features).to(ctx.hidden_dtype)
        return grad_hidden, None, *found


def multiply(stack: Stack, room: torch.Tensor, seeds: list[int | None] | None) -> torch.Tensor:
    """y = [x, x s A'] [W, B]' + bias, [tokens, out], of x as `placed` gives it; x s A' is written into the room beside it."""
    dtype = room.dtype
    if any(stack.ranks):
        room[:, stack.inner] = _inner(stack, stack.input(room), seeds)
    return product(room, stack.weight(dtype).t(), stack.bias(dtype))


def differentiate(
    stack: Stack,
    grad: torch.Tensor,
    room: torch.Tensor,
    seeds: list[int | None] | None,
    needs_input: bool,
    needs_parameters: Sequence[bool],
) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
    """The gradients of x, [tokens, in], whose rows may lie apart, and of the stack's parameters; from that of y and the room that
    `multiply` was given."""
    grad_input = grad_inner = None
    if needs_input:
        grad_input = product(grad, stack.weight(grad.dtype))
        if any(stack.ranks):
            grad_inner = grad_input[:, stack.inner].contiguous()
            grad_input = _add_inner(stack, stack.input(grad_input), grad_inner, seeds)
    elif any(stack.ranks):
        grad_inner = product(grad, stack.weight(grad.dtype)[:, stack.inner])
    wanted = dict(zip(map(id, stack.parameters), needs_parameters, strict=True))
    return grad_input, _parameter_grads(stack, wanted, grad, room, grad_inner, seeds)


def side_by_side(parts: list[torch.Tensor]) -> torch.Tensor:
    """[rows, all columns]: the matrix that the parts are columns of, or else a new one."""
    first, stride = parts[0], sum(part.shape[1] for part in parts)
    place = first.storage_offset()
    for part in parts:
        if (
            part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or part.stride() != (stride, 1)
            or part.storage_offset() != place
        ):
            return torch.cat(parts, 1)
        place += part.shape[1]
    return first.as_strided((len(first), stride), (stride, 1))


def _inner(stack: Stack, flat: torch.Tensor, seeds: list[int | None] | None) -> torch.Tensor:
    """What the adapters' A make of the input, each of its own mask of it: [tokens, ranks]."""
    every = stack.lora_a(flat.dtype)
    if seeds is None:
        return product(flat, every.t())
    flat, parts = flat.contiguous(), zip(stack.layers, seeds, every.split_with_sizes(stack.ranks), strict=True)
    return torch.cat([product(_drop(layer, flat, seed), lora_a.t()) for layer, seed, lora_a in parts], 1)


def _add_inner(stack: Stack, grad_hidden: torch.Tensor, grad_inner: torch.Tensor, seeds: list[int | None] | None) -> torch.Tensor:
    """The gradient with respect to the input, with what comes through the adapters."""
    every = stack.lora_a(grad_inner.dtype)
    if seeds is None:
        return add_product(grad_hidden, grad_inner, every)
    for layer, seed, grad, lora_a in zip(
        stack.layers, seeds, grad_inner.split_with_sizes(stack.ranks, 1), every.split_with_sizes(stack.ranks), strict=True
    ):
        grad_hidden += _drop(layer, product(grad, lora_a), seed)
    return grad_hidden


def _grad_of_a(stack: Stack, flat: torch.Tensor, grad_inner: torch.Tensor, seeds: list[int | None] | None) -> torch.Tensor:
    """Of the stacked A, [ranks, in]."""
    if seeds is None:
        return product(grad_inner.t(), flat, out_dtype=torch.float32)
    flat = flat.contiguous()
    parts = zip(stack.layers, seeds, grad_inner.split_with_sizes(stack.ranks, 1), strict=True)
    return torch.cat([product(grad.t(), _drop(layer, flat, seed), out_dtype=torch.float32) for layer, seed, grad in parts])


def _drop(layer: Layer, x: torch.Tensor, seed: int | None) -> torch.Tensor:
    """The elements that the layer's dropout leaves; one seed, one mask."""
    return x if seed is None else seeded_dropout(x, layer.dropout.p, seed)  # type: ignore[union-attr, arg-type]


def _parameter_grads(
    stack: Stack,
    wanted: dict[int, bool],
    grad: torch.Tensor,
    room: torch.Tensor,
    grad_inner: torch.Tensor | None,
    seeds: list[int | None] | None,
) -> list[torch.Tensor | None]:
    """Gradients of the stack's parameters, in their order; products are in the type of `grad`, as under autocast."""
    flat = stack.input(room)
    needs_weight = any(wanted[id(layer.weight)] for layer in stack.layers)
    of_weights = product(grad.t(), flat, out_dtype=stack.layers[0].weight.dtype).split_with_sizes(stack.out_sizes) if needs_weight else ()
    needs_bias = any(layer.bias is not None and wanted[id(layer.bias)] for layer in stack.layers)
    of_biases = grad.sum(0).split_with_sizes(stack.out_sizes) if needs_bias else ()
    of_a = None if grad_inner is None else _grad_of_a(stack, flat, grad_inner, seeds)
    found: list[torch.Tensor | None] = []
    row = column = 0
    for number, (layer, size, rank) in enumerate(zip(stack.layers, stack.out_sizes, stack.ranks, strict=True)):
        values: list[tuple[torch.Tensor, torch.Tensor | None]] = [(layer.weight, of_weights[number] if needs_weight else None)]
        if layer.bias is not None:
            values.append((layer.bias, of_biases[number] if needs_bias else None))
        if layer.lora_a is not None and layer.lora_b is not None:
            assert of_a is not None
            inner = room[:, stack.inner][:, column : column + rank]
            values.append((layer.lora_a, of_a[column : column + rank] * layer.scaling))
            values.append((layer.lora_b, product(grad[:, row : row + size].t(), inner, out_dtype=torch.float32)))
        found += [value.to(parameter.dtype) if wanted[id(parameter)] and value is not None else None for parameter, value in values]
        row, column = row + size, column + rank
    return found
