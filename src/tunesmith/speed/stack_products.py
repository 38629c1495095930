"""What is computed of a stack (stacks.py), by one kernel each where there are kernels for bf16, otherwise product by product."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Protocol

import torch

from tunesmith.native.library import call
from tunesmith.native.matmul import product
from tunesmith.native.products import has_products
from tunesmith.native.structs import Linear
from tunesmith.native.tensors import address
from tunesmith.speed.kernels import seeded_dropout

if TYPE_CHECKING:
    from tunesmith.speed.stacks import Layer, Stack

Seeds = Sequence[int | None] | None
"""For each layer, where its adapter drops elements of its input; None when none does."""
Draws = tuple[torch.Tensor | None, torch.Tensor | None]
"""The same as kernels read it: probabilities and seeds, [layers] each."""
Gradients = dict[str, Sequence[torch.Tensor]]
"""Those of parameters that are wanted, by what they are called in a layer, of each layer in turn."""


class Products(Protocol):
    """Who computes. Rooms are those of stacks.py."""

    def place_adapters(self) -> None:
        """Writes s A and B into the stacked weights."""

    def multiply(self, room: torch.Tensor, seeds: Seeds) -> torch.Tensor:
        """y = [x, z] [W, B]' + bias, [tokens, out], of x in its room, where z = x s A' is written beside it."""

    def differentiate(self, grad_room: torch.Tensor, seeds: Seeds, needs_input: bool) -> torch.Tensor | None:
        """The gradient of x, [tokens, in], if it is needed, from g in its room, where g B is written beside it."""

    def of_parameters(self, room: torch.Tensor, grad_room: torch.Tensor, seeds: Seeds, needs: Set[str]) -> Gradients:
        """Those of the parameters that are needed, by their names in a layer, from the rooms as the other two leave them."""


def products_of(stack: Stack, weight: torch.Tensor, bias: torch.Tensor | None) -> Products:
    """Who computes the stack from these matrices."""
    by_kernels = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and has_products()
    return ByKernels(stack, weight, bias) if by_kernels else ByTorch(stack, weight, bias)


class ByTorch:
    """By products of torch, or by tunesmith's one by one."""

    def __init__(self, stack: Stack, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.stack, self.weight, self.bias = stack, weight, bias
        self.below, self.beside = weight[stack.out_features :, : stack.in_features], weight[: stack.out_features, stack.in_features :]

    def place_adapters(self) -> None:
        """See Products."""
        for layer, (outputs, between) in self.stack.placed_layers:
            if layer.lora_a is not None and layer.lora_b is not None:
                torch.mul(layer.lora_a.detach(), layer.scaling, out=self.below[between])
                self.beside[outputs, between] = layer.lora_b.detach()

    def multiply(self, room: torch.Tensor, seeds: Seeds) -> torch.Tensor:
        """See Products."""
        stack = self.stack
        if stack.between:
            flat, inner = stack.input(room), room[:, stack.in_features :]
            if seeds is None:
                product(flat, self.below.t(), out=inner)
            else:
                flat = flat.contiguous()  # once, not for each layer
                inner.zero_()
                for (layer, (_, between)), seed in zip(stack.placed_layers, seeds, strict=True):
                    product(_drop(layer, flat, seed), self.below[between].t(), out=inner[:, between])
        return product(room, self.weight[: stack.out_features].t(), self.bias)

    def differentiate(self, grad_room: torch.Tensor, seeds: Seeds, needs_input: bool) -> torch.Tensor | None:
        """See Products."""
        stack = self.stack
        grad, inner = stack.output(grad_room), grad_room[:, stack.out_features :]
        if stack.between:
            inner[:, sum(stack.ranks) :] = 0
            for _, (outputs, between) in stack.placed_layers:  # not all at once: most of what stands beside the weights is zeros
                product(grad[:, outputs], self.beside[outputs, between], out=inner[:, between])
        if not needs_input:
            return None
        if seeds is None:
            return product(grad_room, self.weight[:, : stack.in_features])
        of_input = product(grad, self.weight[: stack.out_features, : stack.in_features])
        for (layer, (_, between)), seed in zip(stack.placed_layers, seeds, strict=True):
            of_input += _drop(layer, product(inner[:, between].contiguous(), self.below[between]), seed)
        return of_input

    def of_parameters(self, room: torch.Tensor, grad_room: torch.Tensor, seeds: Seeds, needs: Set[str]) -> Gradients:
        """See Products."""
        stack, found = self.stack, Gradients()
        flat, grad = stack.input(room), stack.output(grad_room)
        if "weight" in needs:
            found["weight"] = product(grad.t(), flat, out_dtype=stack.weight_dtype).split_with_sizes(stack.out_sizes)
        if "bias" in needs:
            found["bias"] = grad.sum(0).split_with_sizes(stack.out_sizes)
        if needs & {"lora_a", "lora_b"}:
            inner, inner_grad = room[:, stack.in_features :], grad_room[:, stack.out_features :]
            flat, of_a, of_b = flat if seeds is None else flat.contiguous(), [], []
            for (layer, (outputs, between)), seed in zip(stack.placed_layers, seeds or [None] * len(stack.layers), strict=True):
                of_a.append(product(inner_grad[:, between].t(), _drop(layer, flat, seed), out_dtype=torch.float32).mul_(layer.scaling))
                of_b.append(product(grad[:, outputs].t(), inner[:, between], out_dtype=torch.float32))
            found |= {"lora_a": of_a, "lora_b": of_b}
        return found


class ByKernels:
    """By those of stacks.cpp, which read a struct: it holds where the matrices lie, so that they have to be kept."""

    def __init__(self, stack: Stack, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.stack, self.weight, self.bias = stack, weight, bias
        assert weight.is_contiguous()
        assert weight.shape == (stack.out_features + stack.between, stack.in_features + stack.between), weight.shape
        assert bias is None or (bias.shape, bias.dtype, bias.is_contiguous()) == ((stack.out_features,), weight.dtype, True)
        self.scales = torch.tensor([layer.scaling for layer, rank in zip(stack.layers, stack.ranks, strict=True) for _ in range(rank)])
        places = [number for _, parts in stack.placed_layers for part in parts for number in (part.start, part.stop - part.start)]
        pointers = [address(tensor) or 0 for tensor in (weight, bias, self.scales)]
        self.struct = torch.tensor([*pointers, stack.in_features, stack.out_features, stack.between, len(stack.layers), *places])
        self.b_sizes = [size * rank for size, rank in zip(stack.out_sizes, stack.ranks, strict=True)]

    def place_adapters(self) -> None:
        """See Products."""
        adapters = [adapter for layer in self.stack.layers for adapter in (layer.lora_a, layer.lora_b)]
        kept = [None if adapter is None else adapter.detach().float().contiguous() for adapter in adapters]
        call("stack_place_adapters", self.struct, torch.tensor([address(adapter) or 0 for adapter in kept]))

    def multiply(self, room: torch.Tensor, seeds: Seeds) -> torch.Tensor:
        """See Products."""
        _check(room, self.stack.in_features + self.stack.between)
        outputs, draws = torch.empty(len(room), self.stack.out_features, dtype=torch.bfloat16), self.draws(seeds)
        call("stack_multiply", self.linear(draws), room, len(room), outputs)
        return outputs

    def differentiate(self, grad_room: torch.Tensor, seeds: Seeds, needs_input: bool) -> torch.Tensor | None:
        """See Products."""
        _check(grad_room, self.stack.out_features + self.stack.between)
        of_input = torch.empty(len(grad_room), self.stack.in_features, dtype=torch.bfloat16) if needs_input else None
        draws = self.draws(seeds)
        if needs_input or self.stack.between:
            call("stack_differentiate", self.linear(draws), grad_room, len(grad_room), of_input)
        return of_input

    def of_parameters(self, room: torch.Tensor, grad_room: torch.Tensor, seeds: Seeds, needs: Set[str]) -> Gradients:
        """See Products."""
        _check(room, self.stack.in_features + self.stack.between)
        _check(grad_room, self.stack.out_features + self.stack.between)
        assert len(room) == len(grad_room)
        draws = self.draws(seeds)
        linear = self.linear(draws)
        found = self.gradients(linear, needs)
        call("stack_of_parameters", linear, room, grad_room, len(grad_room))
        return found

    def linear(self, draws: Draws) -> Linear:
        """The stack in a pass whose dropout draws these."""
        p, seeds = draws
        return Linear(stack=self.struct.data_ptr(), p=address(p), seeds=address(seeds))

    def draws(self, seeds: Seeds) -> Draws:
        """What kernels read of the seeds."""
        if seeds is None:
            return None, None
        drops = [0.0 if seed is None else layer.dropout.p for layer, seed in zip(self.stack.layers, seeds, strict=True)]  # type: ignore[union-attr]
        return torch.tensor(drops, dtype=torch.float64), torch.tensor([seed or 0 for seed in seeds])

    def gradients(self, linear: Linear, needs: Set[str]) -> Gradients:
        """Places for those that are needed, which the pass is told of."""
        stack, found = self.stack, Gradients()
        if "weight" in needs:
            dtype = torch.bfloat16 if stack.weight_dtype == torch.bfloat16 else torch.float32
            weight = torch.empty(stack.out_features, stack.in_features, dtype=dtype)
            linear.of_weight, linear.weight_is_bf16 = address(weight), dtype == torch.bfloat16
            found["weight"] = weight.split_with_sizes(stack.out_sizes)
        if "bias" in needs:
            bias = torch.empty(stack.out_features)
            linear.of_bias, found["bias"] = address(bias), bias.split_with_sizes(stack.out_sizes)
        if needs & {"lora_a", "lora_b"}:
            lora_a, lora_b = torch.empty(len(self.scales), stack.in_features), torch.empty(sum(self.b_sizes))
            linear.of_a, linear.of_b, found["lora_a"] = address(lora_a), address(lora_b), lora_a.split_with_sizes(stack.ranks)
            each = zip(lora_b.split_with_sizes(self.b_sizes), stack.out_sizes, stack.ranks, strict=True)
            found["lora_b"] = [part.view(size, rank) for part, size, rank in each]
        return found


def _check(room: torch.Tensor, width: int) -> None:
    assert (room.device.type, room.dtype, room.shape[1], room.is_contiguous()) == ("cpu", torch.bfloat16, width, True), room.shape


def _drop(layer: Layer, x: torch.Tensor, seed: int | None) -> torch.Tensor:
    """The elements that the layer's dropout leaves; one seed, one mask."""
    return x if seed is None else seeded_dropout(x, layer.dropout.p, seed)  # type: ignore[union-attr, arg-type]
