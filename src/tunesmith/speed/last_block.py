"""The last block computes what is read of it: the first token of each row, where a classifier's head reads no other, or, where words are
filled in, the tokens whose words are trained or asked for.

Its keys and values are those of all tokens; queries, and all that comes after attention, are only wanted of the tokens that are read.
The block is given these alone, its key and value layers what it would have been given, and attention is from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunesmith.models.outputs import logits_of
from tunesmith.models.token_loss import chosen_of, logits_at
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
    causal = any(getattr(module, "is_causal", False) for module in facts.blocks[1][-1].modules())
    return "its tokens see those before them alone" if causal else None


def apply(facts: Facts) -> Callable[[], None]:
    """The last block of a model whose tokens lie end to end."""
    assert facts.blocks is not None
    block = facts.blocks[1][-1]
    if block not in LAYOUTS:
        raise Unfit("the tokens do not lie end to end")
    head = facts.model.get_output_embeddings()
    last = _LastBlock(block, LAYOUTS[block], head)
    if not _is_read_alone(facts, block, head):
        raise Unfit(
            "more than the first token of each row is read" if head is None else "its head is not known to read each token by itself"
        )
    return last.watch()


def _is_read_alone(facts: Facts, block: torch.nn.Module, head: torch.nn.Module | None) -> bool:
    """Whether the outputs depend on what the block says of the first token of each row, or of those that the head is to read, each of
    them, and of no other."""
    probe, read = facts.probe, []
    places = torch.arange(probe["input_ids"].shape[1])
    tokens = probe["attention_mask"].bool() & (places == 0 if head is None else places % 3 == 2)

    def cut(module: Any, arguments: Any, output: Any) -> Any:
        if head is not None and chosen_of(head) is not tokens:  # while the head is looked for
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        read.append(hidden.detach().requires_grad_())
        return (read[-1], *output[1:]) if isinstance(output, tuple) else read[-1]

    handle = block.register_forward_hook(cut)
    was_training = facts.model.training
    facts.model.eval()
    try:
        with torch.enable_grad():
            outputs = (logits_of(facts.model(**probe)) if head is None else logits_at(facts.model, probe, tokens)).float()
            weights = torch.linspace(1.0, 2.0, outputs.numel()).view(outputs.shape)  # no sum that is the same whatever the input
            slopes = torch.autograd.grad((outputs * weights).sum(), read)
    finally:
        handle.remove()
        facts.model.train(was_training)
    return len(slopes) == 1 and torch.equal((slopes[0] != 0).any(-1), tokens)


class _LastBlock:
    """The hooks on a block and its layers of keys and values."""

    def __init__(self, block: torch.nn.Module, layout: Layout, head: torch.nn.Module | None) -> None:
        self.block, self.layout = block, layout
        self.head = head
        """That of words; without one, a classifier's reads first tokens."""
        self.read = Layout(source=layout)
        """Of the tokens that are read, those of a row a text of its own that attends to the row."""
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
        boundaries = self.layout.boundaries.long()
        wanted = self._wanted(boundaries)
        before = torch.cat([boundaries[:1], wanted.cumsum(0)])
        self.layout.read, self.layout.num_read = torch.nonzero(wanted)[:, 0], int(before[self.layout.num_tokens])
        self.read.boundaries = before[boundaries].int()
        self.read.whole = []
        return (self.read.given.index_select(1, self.layout.read), *others)  # type: ignore[union-attr]

    def _wanted(self, boundaries: torch.Tensor) -> torch.Tensor:
        """Whether each token [all tokens] is read; the first of each row is computed in any case, so that none is empty."""
        assert self.layout.index is not None
        wanted = torch.zeros(len(self.layout.index), dtype=torch.bool)
        if self.head is not None:
            chosen = chosen_of(self.head)
            wanted[: self.layout.num_tokens] = True if chosen is None else chosen.flatten()[self.layout.index[: self.layout.num_tokens]]
        wanted[boundaries[:-1]] = True
        return wanted

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
    summary="the last block computes queries, and what comes after attention, of the tokens that are read",
    why_not=why_not,
    apply=apply,
)
