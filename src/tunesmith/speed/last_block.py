"""The last block computes what is read of it: the first token of each row, where a classifier's head reads no other.

Its keys and values are those of all tokens; queries, and all that comes after attention, are only wanted of the tokens that are read.
The block is given these alone, its key and value layers what it would have been given, and attention is from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunesmith.models.outputs import logits_of
from tunesmith.registry import Acceleration
from tunesmith.speed.end_to_end import LAYOUTS, Layout
from tunesmith.speed.facts import Facts, Unfit

PROJECTIONS = (("key", "value"), ("k_lin", "v_lin"), ("k_proj", "v_proj"))
"""What transformers' encoders call the layers that make keys and values."""


def why_not(facts: Facts) -> str | None:
    """A model that writes, one without blocks, or another device."""
    if not facts.on_cpu:
        return "the model does not compute on the processor: its tokens do not lie end to end"
    if facts.blocks is None:
        return "the model has no list of blocks"
    if facts.model.config.is_encoder_decoder:
        return "the model has two sides"
    return "a head of words reads every token" if facts.model.get_output_embeddings() is not None else None


def apply(facts: Facts) -> Callable[[], None]:
    """The last block of a model whose tokens lie end to end."""
    assert facts.blocks is not None
    block = facts.blocks[1][-1]
    if block not in LAYOUTS:
        raise Unfit("the tokens do not lie end to end")
    last = _LastBlock(block, LAYOUTS[block])
    if not _reads_first_tokens(facts, block):
        raise Unfit("more than the first token of each row is read")
    return last.watch()


def _reads_first_tokens(facts: Facts, block: torch.nn.Module) -> bool:
    """Whether the model's output depends on what the last block says of the first token of each row, and of no other."""
    read: list[torch.Tensor] = []

    def cut(module: Any, arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        read.append(hidden.detach().requires_grad_())
        return (read[-1], *output[1:]) if isinstance(output, tuple) else read[-1]

    handle = block.register_forward_hook(cut)
    was_training = facts.model.training
    facts.model.eval()
    try:
        with torch.enable_grad():
            outputs = logits_of(facts.model(**facts.probe)).float()
            weights = torch.linspace(1.0, 2.0, outputs.numel()).view(outputs.shape)  # no sum that is the same whatever the input
            (slope,) = torch.autograd.grad((outputs * weights).sum(), read[-1])
    finally:
        handle.remove()
        facts.model.train(was_training)
    depends = (slope != 0).any(-1)
    return len(read) == 1 and bool(depends[:, 0].all()) and not bool(depends[:, 1:].any())


class _LastBlock:
    """The hooks on a block and its layers of keys and values."""

    def __init__(self, block: torch.nn.Module, layout: Layout) -> None:
        self.block, self.layout = block, layout
        self.read = Layout(source=layout)
        """Of the tokens that are read, each a text of its own that attends to its row."""
        parents = [(module, names) for module in block.modules() for names in PROJECTIONS if all(hasattr(module, name) for name in names)]
        if len(parents) != 1:
            raise Unfit("its keys and values are not made by layers of their own")
        self.projections = [getattr(parents[0][0], name) for name in parents[0][1]]

    def watch(self) -> Callable[[], None]:
        """Hangs the hooks; returns what takes them away."""
        handles = [
            self.block.register_forward_pre_hook(self.enter),
            self.block.register_forward_hook(self.leave, always_call=True, prepend=True),
        ]
        for projection in self.projections:
            handles += [projection.register_forward_pre_hook(self.widen), projection.register_forward_hook(self.keep)]
        for module in self.block.modules():
            LAYOUTS[module] = self.read

        def undo() -> None:
            for handle in handles:
                handle.remove()
            for module in self.block.modules():
                LAYOUTS[module] = self.layout

        return undo

    def enter(self, module: Any, arguments: tuple[Any, ...]) -> Any:
        """Before the block."""
        if not self.layout.laid_out or self.layout.index is None:
            return None
        assert self.layout.boundaries is not None
        self.read.given, *others = arguments
        self.layout.read = self.layout.boundaries[:-1].long()
        self.read.boundaries = torch.arange(len(self.layout.boundaries), dtype=torch.int32)
        self.read.whole = []
        return (self.read.given.index_select(1, self.layout.read), *others)  # type: ignore[union-attr]

    def widen(self, module: Any, arguments: tuple[Any, ...]) -> Any:
        """Before a layer of keys or values."""
        return None if self.read.given is None else (self.read.given, *arguments[1:])

    def keep(self, module: Any, arguments: Any, output: torch.Tensor) -> Any:
        """After it: what comes out has the shape that the block expects, and is read by nobody."""
        if self.read.given is None:
            return None
        assert self.layout.read is not None
        self.read.whole.append(output)
        return output[:, : len(self.layout.read)]

    def leave(self, *_: Any) -> None:
        """After the block, or when it raised."""
        self.read.given = None
        self.read.whole = []


LAST_BLOCK = Acceleration(
    name="last_block",
    summary="the last block computes queries, and what comes after attention, of the first token of each row, where no other is read",
    why_not=why_not,
    apply=apply,
)
