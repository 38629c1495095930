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

from tunesmith.native.matmul import product
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
        self.out_features = sum(self.out_sizes)
        self.ranks = [0 if layer.lora_a is None else layer.lora_a.shape[0] for layer in layers]
        self.between = -(-sum(self.ranks) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        """Columns of what the adapters' A make of an input, and of zeros: rows of a length that the kernel can read where they lie."""
        self.places = list(zip(_slices(self.out_sizes), _slices(self.ranks), strict=True))
        """Of each layer, its columns of the outputs, and of what is between."""
        self.scales = torch.tensor([[layer.scaling] for layer, rank in zip(layers, self.ranks, strict=True) for _ in range(rank)])
        """[ranks, 1]"""
        self._made: dict[str, tuple[list[tuple[int, int]], torch.Tensor]] = {}
        """The matrices in `dtype`, the run's; those in another, which only a trial asks for, are not kept."""
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
        """[out + between, in + between]: the stacked weights, s A below them, B beside them, and zeros."""
        shape = self.out_features + self.between, self.in_features + self.between
        weights = self._stacked("weight", dtype, [layer.weight for layer in self.layers], shape)
        if self.between:
            self._place_adapters(weights)
        return weights

    def _place_adapters(self, weights: torch.Tensor) -> None:
        adapters = [adapter for layer in self.layers for adapter in (layer.lora_a, layer.lora_b) if adapter is not None]
        state = [(adapter.data_ptr(), adapter._version) for adapter in adapters]
        if weights.dtype == self.dtype:
            if self._made.get("adapters", ([], weights))[0] == state:
                return
            self._made["adapters"] = state, weights
        below, beside = self.below(weights), self.beside(weights)
        for layer, (outputs, between) in zip(self.layers, self.places, strict=True):
            if layer.lora_a is not None and layer.lora_b is not None:
                torch.mul(layer.lora_a.detach(), layer.scaling, out=below[between])
                beside[outputs, between] = layer.lora_b.detach()

    def below(self, weights: torch.Tensor) -> torch.Tensor:
        """[between, in]: s A, and zeros."""
        return weights[self.out_features :, : self.in_features]

    def beside(self, weights: torch.Tensor) -> torch.Tensor:
        """[out, between]: B of each layer, and zeros."""
        return weights[: self.out_features, self.in_features :]

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
            return x
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
        state = [(part.data_ptr(), part._version) for part in parts]
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
        places = self.weight(self.dtype)[: self.out_features, : self.in_features].split_with_sizes(self.out_sizes)
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
        parts = [None if grad is None else grad.reshape(-1, size) for grad, size in zip(grads, stack.out_sizes, strict=True)]
        needs_hidden, _, *wanted = ctx.needs_input_grad
        found = Differential(stack, stack.placed_grads(parts, len(room), room.dtype), room, ctx.seeds, needs_hidden, wanted)
        grad_hidden = found.of_input.reshape(*ctx.shape, stack.in_features).to(ctx.hidden_dtype) if needs_hidden else None
        return grad_hidden, None, *found.of_parameters()


def multiply(stack: Stack, room: torch.Tensor, seeds: list[int | None] | None) -> torch.Tensor:
    """y = [x, z] [W, B]' + bias, [tokens, out], of x as `placed` gives it; z = x s A' is written into the room beside it."""
    weights = stack.weight(room.dtype)
    if stack.between:
        below, flat, inner = stack.below(weights), stack.input(room), room[:, stack.in_features :]
        if seeds is None:
            product(flat, below.t(), out=inner)
        else:
            flat = flat.contiguous()
            inner.zero_()
            for layer, (_, between), seed in zip(stack.layers, stack.places, seeds, strict=True):
                product(_drop(layer, flat, seed), below[between].t(), out=inner[:, between])
    return product(room, weights[: stack.out_features].t(), stack.bias(room.dtype))


class Differential:
    """The gradients of a stack: of its input at once, of its parameters when they are asked for.

    They are made from that of y, in its room, and the room that `multiply` was given. Where this was not kept, `again` has to be filled
    before parameters are asked for.
    """

    def __init__(
        self,
        stack: Stack,
        grad_room: torch.Tensor,
        room: torch.Tensor | None,
        seeds: list[int | None] | None,
        needs_input: bool,
        needs_parameters: Sequence[bool],
    ) -> None:
        self.stack, self.grad_room, self.room, self.seeds = stack, grad_room, room, seeds
        self.wanted = dict(zip(map(id, stack.parameters), needs_parameters, strict=True))
        weights = stack.weight(grad_room.dtype)
        grad, inner = stack.output(grad_room), grad_room[:, stack.out_features :]
        if stack.between:
            beside, num_filled = stack.beside(weights), sum(stack.ranks)
            if num_filled < stack.between:
                inner[:, num_filled:] = 0
            for outputs, between in stack.places:  # not all at once: most of what stands beside the weights is zeros
                product(grad[:, outputs], beside[outputs, between], out=inner[:, between])
        self._of_input: torch.Tensor | None = None
        if needs_input and seeds is None:
            self._of_input = product(grad_room, weights[:, : stack.in_features])
        elif needs_input:
            self._of_input = product(grad, weights[: stack.out_features, : stack.in_features])
            below = stack.below(weights)
            for layer, (_, between), seed in zip(stack.layers, stack.places, seeds or [], strict=True):
                self._of_input += _drop(layer, product(inner[:, between].contiguous(), below[between]), seed)

    @property
    def of_input(self) -> torch.Tensor:
        """[tokens, in], where it is needed."""
        assert self._of_input is not None
        return self._of_input

    def again(self) -> torch.Tensor | None:
        """Where the input is to be written once more: over its gradient, when that has been read. None where it was kept, or nobody wants
        it."""
        if self.room is not None or not any(self.wanted[id(layer.weight)] for layer in self.stack.layers):
            return None
        self.room = self.of_input
        return self.room

    def of_parameters(self) -> list[torch.Tensor | None]:
        """In their order; products are in the type of the gradient of y, as under autocast."""
        stack, wanted = self.stack, self.wanted
        if not any(wanted.values()):
            return [None] * len(wanted)
        grad, of_weights = stack.output(self.grad_room), None
        needs_bias = any(layer.bias is not None and wanted[id(layer.bias)] for layer in stack.layers)
        of_biases = grad.sum(0) if needs_bias else None
        if any(wanted[id(layer.weight)] for layer in stack.layers):
            assert self.room is not None
            of_weights = product(grad.t(), stack.input(self.room), out_dtype=stack.layers[0].weight.dtype)
        of_a = self._of_lora_a() if stack.between else None
        found: dict[int, torch.Tensor] = {}
        for layer, (outputs, between) in zip(stack.layers, stack.places, strict=True):
            if of_weights is not None:
                found[id(layer.weight)] = of_weights[outputs]
            if of_biases is not None:
                found[id(layer.bias)] = of_biases[outputs]
            if of_a is not None and layer.lora_b is not None:
                assert self.room is not None
                inner = self.room[:, stack.in_features :][:, between]
                found[id(layer.lora_a)] = of_a[between]
                found[id(layer.lora_b)] = product(grad[:, outputs].t(), inner, out_dtype=torch.float32)
        return [found[id(one)].to(one.dtype) if wanted[id(one)] else None for one in stack.parameters]

    def _of_lora_a(self) -> torch.Tensor:
        """Of the stacked A, [ranks, in]."""
        stack = self.stack
        assert self.room is not None
        flat, inner = stack.input(self.room), self.grad_room[:, stack.out_features :][:, : sum(stack.ranks)]
        if self.seeds is None:
            return product(inner.t(), flat, out_dtype=torch.float32).mul_(stack.scales)
        flat, parts = flat.contiguous(), []
        for layer, (_, between), seed in zip(stack.layers, stack.places, self.seeds, strict=True):
            parts.append(product(inner[:, between].t(), _drop(layer, flat, seed), out_dtype=torch.float32))
        return torch.cat(parts).mul_(stack.scales)


def _drop(layer: Layer, x: torch.Tensor, seed: int | None) -> torch.Tensor:
    """The elements that the layer's dropout leaves; one seed, one mask."""
    return x if seed is None else seeded_dropout(x, layer.dropout.p, seed)  # type: ignore[union-attr, arg-type]


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


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes begin and end, one after the other."""
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
