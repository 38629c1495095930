"""A loop in plain PyTorch: as first written (fp32, padded to the longest of a batch), and tuned (bf16 where that is faster, autocast
with frozen weights held in it, each step's rows sorted by length and cut into micro-batches that are weighted to the same gradient,
fused AdamW)."""

from __future__ import annotations

from typing import Any

import torch

from bench.peers.given import Given, Row, collate, evaluate, load_model, num_trainable, read_request
from bench.peers.record import Record


def micro_batches(rows: list[Row], given: Given) -> list[list[Row]]:
    """The rows of one step, at once or sorted by length and cut."""
    if not given.is_tuned:
        return [rows]
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    size = -(-len(rows) // given.micro_batches)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def weight(rows: list[Row]) -> int:
    """What a mean loss over these is a mean of: trained tokens, or rows."""
    return sum(label >= 0 for row in rows for label in row["labels"][1:]) if isinstance(rows[0]["labels"], list) else len(rows)


def optimizer_of(model: Any, given: Given) -> Any:
    """AdamW as Trainer makes it."""
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(decayed, lr=given.learning_rate, weight_decay=0.0, fused=given.is_tuned)


def main() -> None:
    """Trains as asked."""
    given, record = read_request(), Record()
    rows = given.rows()
    model: Any = load_model(given)
    record.trainable = num_trainable(model)
    if given.is_tuned_to_bf16 and given.lora:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        record.notes.append("frozen weights in bf16")
    computed = torch.compile(model, dynamic=True) if given.variant == "compiled" else model
    model.train()
    optimizer = optimizer_of(model, given)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / given.steps))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    record.start()
    for start in range(0, len(rows), given.batch_size):
        batch = rows[start : start + given.batch_size]
        whole, total = weight(batch), 0.0
        for part in micro_batches(batch, given):
            with torch.autocast("cpu", torch.bfloat16, enabled=given.is_tuned_to_bf16):
                loss = computed(**collate(part, given.pad_token_id)).loss * (weight(part) / whole)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        record.tokens.append(sum(len(row["input_ids"]) for row in batch))
        record.step(total)
    record.metrics = evaluate(model, given)
    record.write(given.out)


if __name__ == "__main__":
    main()
