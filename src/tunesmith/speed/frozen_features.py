"""What blocks that are not trained make of a row is computed once, and kept for the epochs that follow.

Kept are the hidden states that leave the last frozen block, by the tokens of the row. What is computed of a row must not depend on the rows
beside it, or a run that was resumed, and so computes a row in another step than the run that was not, would have other bits: that holds for
the compiled kernels, each of whose sums is in one order, if a micro-batch is not so small that torch computes its products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from tunesmith.native.matmul import FEWEST_FOR_TILES, SHALLOW
from tunesmith.native.products import has_products
from tunesmith.registry import Acceleration
from tunesmith.runs.environment import total_memory_bytes
from tunesmith.speed.end_to_end import LAYOUTS, Layout
from tunesmith.speed.facts import Facts, Unfit
from tunesmith.speed.instances import override
from tunesmith.speed.stacks import STACKS
from tunesmith.speed.varlen import is_native_throughout

MOST_MEMORY = 0.25
"""Share of the machine's memory that features may take."""
BYTES = 4
PROBE_LENGTHS = (97, 41, 64)


def why_not(facts: Facts) -> str | None:
    """Nothing below the first trained block, rows read once, too many tokens, or products that depend on what stands beside a row."""
    if facts.blocks is None:
        return "the model has no list of blocks"
    if not facts.training:
        return "nothing is trained"
    if facts.model.config.is_encoder_decoder:
        return "the model has two sides"
    if not _num_frozen(facts):
        return "the first block is trained"
    if facts.epochs <= 1:
        return "every row is read once"
    if not facts.on_cpu or not facts.bf16 or not has_products():
        return "only the compiled products of bf16 make the same of a row whatever stands beside it"
    size = feature_bytes(facts)
    if size > MOST_MEMORY * total_memory_bytes():
        return f"the features of {facts.num_tokens:,} tokens would take {size / 1e9:.1f} GB"
    return None


def feature_bytes(facts: Facts) -> int:
    """Memory of the features of all training rows."""
    width = getattr(facts.model.config.get_text_config(), "hidden_size", None) or facts.model.get_input_embeddings().weight.shape[1]
    return facts.num_tokens * int(width) * BYTES


def apply(facts: Facts) -> Callable[[], None]:
    """Keeps what leaves the frozen blocks of a model whose tokens lie end to end."""
    assert facts.blocks is not None
    blocks = list(facts.blocks[1])[: _num_frozen(facts)]
    if blocks[0] not in LAYOUTS:
        raise Unfit("the tokens do not lie end to end")
    layers = [module for block in blocks for module in block.modules() if isinstance(module, torch.nn.Linear)]
    if not layers or facts.model not in STACKS:
        raise Unfit("products are torch's without `linear`")
    if any(layer.in_features <= SHALLOW for layer in layers):
        raise Unfit(f"layers that read {SHALLOW} numbers or fewer are computed by torch")
    config = facts.model.config.get_text_config()
    if not is_native_throughout(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads, torch.bfloat16):
        raise Unfit("attention of some lengths is computed by torch")
    _refuse_dependence(facts, blocks[-1])
    fewest = max(-(-FEWEST_FOR_TILES // layer.weight.numel()) for layer in layers)
    return _Features(facts, blocks, LAYOUTS[blocks[0]], fewest).watch()


def _num_frozen(facts: Facts) -> int:
    """How many of the first blocks hold nothing that is trained."""
    assert facts.blocks is not None
    is_trained = [any(parameter.requires_grad for parameter in block.parameters()) for block in facts.blocks[1]]
    return is_trained.index(True) if True in is_trained else len(is_trained)


def _refuse_dependence(facts: Facts, block: torch.nn.Module) -> None:
    """Tries what leaves the block on drawn rows, each alone and all together, in training mode: no dropout, nothing trained before it, and
    the same bits."""
    vocabulary = facts.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (length,), generator=generator) for length in PROBE_LENGTHS]
    together = _leaving(facts, block, rows)
    if together.requires_grad:
        raise Unfit("what stands before the blocks is trained")
    for number, row in enumerate(rows):
        if not torch.equal(_leaving(facts, block, [row])[0, : len(row)], together[number, : len(row)]):
            raise Unfit("what the frozen blocks make of a row depends on chance, or on the rows beside it")


def _leaving(facts: Facts, block: torch.nn.Module, rows: list[torch.Tensor]) -> torch.Tensor:
    """What leaves the block in training mode, [rows, tokens, hidden]."""
    layout, seen = LAYOUTS[block], []

    def note(module: Any, arguments: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            raise Unfit("its blocks hand on more than hidden states")
        seen.append(output if output.shape[:2] == layout.shape else layout.unpack(output))

    batch = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
    handle = block.register_forward_hook(note)
    was_training = facts.model.training
    facts.model.train()
    try:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16), torch.random.fork_rng(devices=[]):
            facts.model(**batch)
    finally:
        handle.remove()
        facts.model.train(was_training)
    return seen[0]


class _Features:
    """The features kept so far, and the hooks that keep them and put them in the place of the frozen blocks."""

    def __init__(self, facts: Facts, blocks: list[torch.nn.Module], layout: Layout, fewest_tokens: int) -> None:
        self.model, self.blocks, self.layout = facts.model, blocks, layout
        self.fewest_tokens, self.most_tokens = fewest_tokens, facts.num_tokens
        self.rows: dict[bytes, torch.Tensor] = {}
        """What leaves the last frozen block, [tokens, hidden], by the inputs of the row."""
        self.num_kept = 0
        """Tokens."""
        self.keys: list[bytes] = []
        """Of the rows of the pass under way; empty where nothing is kept of it."""
        self.known = False
        """Whether all of them are kept."""

    def watch(self) -> Callable[[], None]:
        """Hangs the hooks; returns what takes them, and the features, away."""
        handle = self.model.register_forward_pre_hook(self.begin, with_kwargs=True)
        undo = override({block: functools.partial(self.forward, block, block.forward) for block in self.blocks})

        def take_away() -> None:
            undo()
            handle.remove()
            self.rows.clear()

        return take_away

    def begin(self, module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        """Before the model: which rows these are."""
        self.keys, self.known = [], False
        layout = self.layout
        if not module.training or not layout.laid_out:
            return
        assert layout.boundaries is not None
        ends = layout.boundaries.tolist()
        if ends[-1] < self.fewest_tokens:
            return
        shape = inputs["input_ids"].shape
        named = [name for name in sorted(inputs) if name.endswith("_ids") and name != "position_ids" and inputs[name].shape == shape]
        read = torch.stack([inputs[name].flatten() for name in named], 1)
        if layout.index is not None:
            read, ends = read[layout.index], ends[: shape[0] + 1]  # without what fills up to a multiple
        self.keys = [read[start:end].numpy().tobytes() for start, end in pairwise(ends)]
        self.known = all(key in self.rows for key in self.keys)

    def forward(self, block: torch.nn.Module, plain: Callable[..., Any], hidden: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """Of a frozen block; of rows that are kept, the last one gives what leaves it, and the others nothing to do."""
        is_last = block is self.blocks[-1]
        if self.known:
            return self._kept(hidden) if is_last else hidden
        output = plain(hidden, *arguments, **named)
        if is_last and self.keys:
            self._keep(output)
        return output

    def _kept(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = [self.rows[key] for key in self.keys]
        filling = hidden.shape[1] - sum(map(len, rows))  # of which nothing is used
        return torch.cat([*rows, rows[0].new_zeros(filling, hidden.shape[2])])[None]

    def _keep(self, output: torch.Tensor) -> None:
        assert self.layout.boundaries is not None
        ends = self.layout.boundaries.tolist()
        for number, key in enumerate(self.keys):
            if key not in self.rows and self.num_kept < self.most_tokens:
                self.rows[key] = output[0, ends[number] : ends[number + 1]].clone()
                self.num_kept += len(self.rows[key])


FROZEN_FEATURES = Acceleration(
    name="frozen_features",
    summary="what the frozen blocks make of a row is computed in the first epoch and kept",
    why_not=why_not,
    apply=apply,
)
