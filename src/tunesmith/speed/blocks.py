"""What blocks computed by one kernel each have in common: the linear layers' stacks, who may watch, and what a pass reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch

from tunesmith.native.library import call, why_not_native
from tunesmith.native.products import has_products
from tunesmith.native.structs import Attention, Linear, Struct
from tunesmith.native.tensors import address
from tunesmith.speed.end_to_end import LAYOUTS, Layout
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import body_of, compute_dtype, override
from tunesmith.speed.kernels import draw_seed
from tunesmith.speed.stack_products import ByKernels, Gradients
from tunesmith.speed.stacks import STACKS, Stack

CONTAINERS = torch.nn.ModuleDict, torch.nn.ModuleList, torch.nn.ParameterDict, torch.nn.ParameterList
"""Which nobody calls."""


def why_not_whole(facts: Facts, is_known: Callable[[Any], bool]) -> str | None:
    """Why the blocks of a model cannot be one kernel each: none of a known kind, another device, products in fp32, no kernels."""
    if not facts.on_cpu:
        return "measured on processors only"
    if not facts.bf16:
        return "products in fp32 take so long that nothing between them shows"
    if facts.blocks is None:
        return "the model has no list of blocks"
    if not all(map(is_known, facts.blocks[1])):
        return "its blocks are of another kind"
    return why_not_native() or (None if has_products() else "the processor does not multiply bf16")


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
        inner = [module for module in block.modules() if module is not block and not isinstance(module, CONTAINERS)]
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
        """Whether somebody watches from inside, wants it without adapters, sums are in bf16, or products are not."""
        watched = sum(map(len, self.hooks)) != self.num_hooks
        of_other_types = (hidden.dtype, compute_dtype(hidden)) != (torch.float32, torch.bfloat16)
        return watched or of_other_types or any(module.disable_adapters for module in self.adapted)

    def hand_on(self, output: torch.Tensor, *made_of_it: Any) -> None:
        """Leaves to the block after it what was made of the output beside it."""
        if self.following is not None:
            self.following._handed = output, *made_of_it

    def handed(self, read: Any) -> tuple[Any, ...]:
        """What the block before made of `read`; nothing where that is another tensor than its output."""
        (output, *made_of_it), self._handed = self._handed, (None,)
        return tuple(made_of_it) if output is read else ()


@dataclass
class Held:
    """What a pass reads by its address, and its gradient will, besides what autograd keeps."""

    tensors: list[torch.Tensor | None] = field(default_factory=list)
    products: list[ByKernels | None] = field(default_factory=list)
    """Of each stack in turn."""

    def address(self, tensor: torch.Tensor) -> int | None:
        """Of its numbers in fp32, end to end."""
        is_plain = tensor.dtype == torch.float32 and tensor.is_contiguous()
        self.tensors.append(tensor if is_plain else tensor.detach().float().contiguous())
        return address(self.tensors[-1])

    def linear(self, stack: Stack | None) -> Linear:
        """A stack in the pass, with what its dropout draws; nothing of none."""
        products = None if stack is None else stack.products(torch.bfloat16)
        assert products is None or isinstance(products, ByKernels)
        self.products.append(products)
        if stack is None or products is None:
            return Linear()
        draws = products.draws(stack.seeds())
        self.tensors += draws
        return products.linear(draws)

    def attention(self, layout: Layout, heads: int, kv_heads: int, width: int, left: int, right: int, scale: float, p: float) -> Attention:
        """That of a layout; a query sees keys from `left` before its own place to `right` after. With what its dropout draws."""
        read = layout.attended(causal=right == 0)
        sequences = read.longest_first()
        assert read is layout or len(sequences) == len(layout.longest_first()), "tokens that see no keys"
        self.tensors += [layout.boundaries, read.boundaries, sequences]
        sizes = len(sequences), heads, kv_heads, width, left, right
        return Attention(*map(address, self.tensors[-3:]), *sizes, scale, p, draw_seed() if p else 0)


def places_for(products: ByKernels | None, linear: Linear, wanted: Sequence[bool]) -> Gradients | None:
    """Places for the gradients of a stack's parameters, which its part of a pass is told of; None where none is wanted."""
    return None if products is None or not any(wanted) else products.gradients(linear, products.stack.kinds_of(wanted))


def of_each(products: ByKernels | None, found: Gradients | None, wanted: Sequence[bool]) -> list[torch.Tensor | None]:
    """The gradients in these places, for each parameter."""
    return [None] * len(wanted) if products is None or found is None else products.stack.of_each(found, wanted)


def in_types_of(parameters: Sequence[torch.Tensor], found: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Gradients in the types of their parameters."""
    return [None if grad is None else grad.to(parameter.dtype) for parameter, grad in zip(parameters, found, strict=True)]


def room_for(kernel: str, of_pass: Struct) -> tuple[torch.Tensor, int, int]:
    """(what a pass keeps for its gradient; how many bytes the pass wants besides, and how many its gradient)."""
    sizes = torch.empty(3, dtype=torch.int64)
    call(kernel, of_pass, sizes)
    kept, forward, backward = sizes.tolist()
    return torch.empty(kept, dtype=torch.uint8), forward, backward


def written_over(kept: torch.Tensor) -> torch.Tensor:
    """What a pass kept, for its gradient to write over; a copy of it where the graph is kept for another backward pass."""
    return kept.clone() if torch._C._autograd._get_current_graph_task_keep_graph() else kept


def stack_of(stacks: dict[int, Stack], *modules: Any) -> Stack:
    """That of layers, and of no others."""
    stack = stacks.get(id(modules[0]))
    if stack is None or [id(layer.module) for layer in stack.layers] != [id(module) for module in modules]:
        raise Unfit("its linear layers are not in stacks as blocks of its kind have them")
    return stack
