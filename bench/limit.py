"""What the machine could do at best: the operations that a step of a work needs, and the rate of matrix products at its shapes, in bf16
where that is faster.

    python -m bench.limit FOLDER_OF_A_PREPARED_WORK     prints both as JSON

Necessary operations: for each token 2 x weights forward, and backward 2 x for the gradient of the inputs and 2 x for that of the
weights, which frozen ones do not need (so 6 x or 4 x; adapters 6 x); 2 x 2 x head size for each pair of tokens that may attend to each
other, and twice that backward; the head of a language model on trained tokens only. No padding, no embeddings, no optimizer, and of a
classifier's last block no token that its head does not read, but in attention, which is counted whole.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

REPEATS = 15


@dataclass(frozen=True)
class Shapes:
    """Linear layers of a model: (inputs, outputs) and how many there are, and what attention costs."""

    per_token: Counter[tuple[int, int]]
    per_row: Counter[tuple[int, int]]
    """Those that see one vector of a row, such as a classifier."""
    head: tuple[int, int] | None
    """The language model's head."""
    attention_width: int
    """Query heads x head size, summed over layers."""
    is_causal: bool


def shapes_of(model: Any, per_token: bool) -> Shapes:
    """Found by running a row of eight tokens: what a layer makes of a token counts if an output depends on it."""
    head = model.get_output_embeddings() if per_token else None
    made: list[tuple[Any, torch.Tensor]] = []
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    hooks = [module.register_forward_hook(lambda module, inputs, output: made.append((module, output))) for module in linears]
    outputs = model.eval()(input_ids=torch.arange(8)[None])[0]
    for hook in hooks:
        hook.remove()
    weights = torch.linspace(1.0, 2.0, outputs.numel()).view(outputs.shape)
    slopes = torch.autograd.grad((outputs * weights).sum(), [output for _, output in made])
    counts: dict[bool, Counter[tuple[int, int]]] = {True: Counter(), False: Counter()}
    for (module, _), slope in zip(made, slopes, strict=True):
        counts[int((slope != 0).any(-1).sum()) > 1][module.in_features, module.out_features] += 1
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * head_size
    return Shapes(counts[True], counts[False], (head.in_features, head.out_features) if head is not None else None, width, per_token)


def necessary_operations(shapes: Shapes, settings: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """Operations that these rows need, all steps together; see the module."""
    lengths = [len(row["input_ids"]) for row in rows]
    tokens, rank = sum(lengths), (settings["lora"] or {}).get("r", 0)
    # a probe needs features once; prediction needs the forward pass
    passes = 2 if settings["kind"] != "train" else 4 if rank else 6
    weights = sum(inputs * outputs * count for (inputs, outputs), count in shapes.per_token.items())
    adapters = sum(rank * (inputs + outputs) * count for (inputs, outputs), count in shapes.per_token.items())
    operations = (passes * weights + 6 * adapters) * tokens
    operations += passes * len(rows) * sum(inputs * outputs * count for (inputs, outputs), count in shapes.per_row.items())
    pairs = sum(length * (length + 1) / 2 if shapes.is_causal else length**2 for length in lengths)
    operations += (12 if settings["kind"] == "train" else 4) * shapes.attention_width * pairs
    if shapes.head is not None:
        trained = sum(label >= 0 for row in rows for label in row["labels"][1:])
        operations += passes * shapes.head[0] * shapes.head[1] * trained
    return float(operations)


def gemm_gflops(shapes: Shapes, tokens: int, with_weight_gradients: bool, backward: bool, dtype: torch.dtype) -> float:
    """GFLOP/s of products over all of a step's per-token layers, each the median of repeats, weighted by its time."""
    seconds = operations = 0.0
    for (inputs, outputs), count in shapes.per_token.items():
        products = [(tokens, inputs, outputs)]
        products += [(tokens, outputs, inputs)] if backward else []
        products += [(outputs, tokens, inputs)] if with_weight_gradients else []
        for rows, inner, columns in products:
            seconds += count * _median_seconds(rows, inner, columns, dtype)
            operations += count * 2.0 * rows * inner * columns
    return float(operations / seconds / 1e9)


def _median_seconds(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    times = []
    for _ in range(REPEATS + 3):
        start = time.perf_counter()
        torch.mm(left, right.t(), out=out)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def measure(folder: Path) -> dict[str, float]:
    """`operations` of the whole work and `gflops` of the machine at its shapes."""
    settings = json.loads((folder / "work.json").read_text())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    auto = transformers.AutoModelForCausalLM if settings["per_token"] else transformers.AutoModelForSequenceClassification
    shapes = shapes_of(auto.from_pretrained(folder / "model", dtype=torch.float32), settings["per_token"])
    tokens = round(sum(len(row["input_ids"]) for row in rows) / settings["steps"])
    is_trained, dtype = settings["kind"] == "train", torch.bfloat16 if settings["bf16"] else torch.float32
    return {
        "operations": necessary_operations(shapes, settings, rows),
        "tokens_per_step": tokens,
        "gflops": gemm_gflops(shapes, tokens, is_trained and not settings["lora"], is_trained, dtype),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
