"""What blocks computed as one function each have in common: the linear layers' stacks, who may watch, and what is kept for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from tunesmith.native.library import why_not_native
from tunesmith.speed.end_to_end import LAYOUTS
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import body_of, override
from tunesmith.speed.stacks import STACKS, Differential, Stack, multiply


def why_not_whole(facts: Facts, is_known: Callable[[Any], bool]) -> str | None:
    """Why the blocks of a model cannot be one function each: none of a known kind, another device, products in fp32, no kernels."""
    if not facts.on_cpu:
        return "measured on processors only"
    if not facts.bf16:
        return "products in fp32 take so long that nothing between them shows"
    if facts.blocks is None:
        return "the model has no list of blocks"
    return why_not_native() if all(map(is_known, facts.blocks[1])) else "its blocks are of another kind"


def apply_to_blocks(facts: Facts, make: Callable[[Any, dict[int, Stack]], Any]) -> Callable[[], None]:
    """Computes each block of a model whose tokens lie end to end by what is made of it and of the stacks of its linear layers, which are
    found by the identity of what the model calls."""
    assert facts.blocks is not None
    blocks = list(facts.blocks[1])
    if blocks[0] not in LAYOUTS:
        raise Unfit("the tokens do not lie end to end")
    stacks = {id(layer.module): stack for stack in STACKS.get(facts.model, []) for layer in stack.layers}
    computed = [make(block, stacks) for block in blocks]
    for block, following in pairwise(computed):
        block.following = following
    return override({block: own.forward for block, own in zip(blocks, computed, strict=True)})


def computes(module: Any, kind: type[Any], *methods: str) -> bool:
    """Whether the module's code is that of the class."""
    return all(body_of(type(module), method) == body_of(kind, method) != "" for method in methods or ("forward",))


class Block:
    """A block, and how it is computed without its modules."""

    def __init__(self, block: Any, groups: Sequence[Sequence[torch.Tensor]]) -> None:
        self.plain, self.layout = block.forward, LAYOUTS[block]
        inner = [module for module in block.modules() if module is not block]
        self.hooks = [hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self.num_hooks = sum(map(len, self.hooks))
        self.adapted = [module for module in inner if hasattr(module, "disable_adapters")]
        self.parameters = [parameter for group in groups for parameter in group]
        self.places = [slice(start, end) for start, end in pairwise(accumulate(map(len, groups), initial=0))]
        """Of each group among the parameters."""
        self.following: Any = None
        """The block after it."""
        self._handed: tuple[Any, ...] = (None,)

    def is_left_to_modules(self, hidden: torch.Tensor) -> bool:
        """Whether somebody watches from inside, wants it without adapters, or sums are in bf16."""
        watched = sum(map(len, self.hooks)) != self.num_hooks
        return watched or hidden.dtype != torch.float32 or any(module.disable_adapters for module in self.adapted)

    def hand_on(self, output: torch.Tensor, *made_of_it: Any) -> None:
        """Leaves to the block after it what was made of the output beside it."""
        if self.following is not None:
            self.following._handed = output, *made_of_it

    def handed(self, read: Any) -> tuple[Any, ...]:
        """What the block before made of `read`; nothing where that is another tensor than its output."""
        (output, *made_of_it), self._handed = self._handed, (None,)
        return tuple(made_of_it) if output is read else ()


def stack_of(stacks: dict[int, Stack], *modules: Any) -> Stack:
    """That of layers, and of no others."""
    stack = stacks.get(id(modules[0]))
    if stack is None or [id(layer.module) for layer in stack.layers] != [id(module) for module in modules]:
        raise Unfit("its linear layers are not in stacks as blocks of its kind have them")
    return stack


@dataclass
class Tape:
    """What a pass leaves for its gradient, which takes the last first."""

    tensors: list[torch.Tensor | None]
    drawn: list[Any]

    def multiply(self, stack: Stack, x: torch.Tensor, keeps: bool = True) -> torch.Tensor:
        """What the stack makes of x, [rows, in] or in its room; unless this `keeps` it, or adapters want it, x has to be made again."""
        seeds, room = stack.seeds(), stack.placed(x)
        outputs = multiply(stack, room, seeds)
        self.tensors.append(room if keeps or stack.between else None)
        self.drawn.append(seeds)
        return outputs

    def differentiate(self, stack: Stack, grad_room: torch.Tensor, needs_x: bool, wanted: Sequence[bool]) -> Differential:
        """The gradients of x and of the stack's parameters, from that of what it made of x, in its room."""
        return Differential(stack, grad_room, self.take(1)[0], self.drawn.pop(), needs_x, wanted)

    def take(self, count: int) -> list[Any]:
        """The last tensors, in the order in which they came."""
        taken = self.tensors[-count:]
        del self.tensors[-count:]
        return taken
