"""transformers.Trainer: as it ships (fp32, padded to the longest of a batch), and tuned (bf16 autocast where that is faster, rows grouped by
length)."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from bench.peers.given import Given, Row, collate, evaluate, load_model, num_trainable, read_request
from bench.peers.record import Record

PROBE_EPOCHS = 10


class Note(TrainerCallback):  # type: ignore[misc]
    """Notes the end and the loss of each step."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.record.step(float((logs or {})["loss"]))


def arguments_of(given: Given) -> dict[str, Any]:
    """What the work itself settles; anything else is the peer's own."""
    is_probe = given.kind == "probe"
    return {
        "output_dir": str(given.scratch), "per_device_train_batch_size": given.batch_size, "learning_rate": given.learning_rate, "seed": given.seed,
        "num_train_epochs": PROBE_EPOCHS if is_probe else 1, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "use_cpu": True,
        "disable_tqdm": True, "report_to": "none",
    }  # fmt: skip


def main() -> None:
    """Trains as asked."""
    given, record = read_request(), Record()
    rows = given.rows()
    model = load_model(given)
    record.trainable = num_trainable(model)
    tuned = {"bf16": given.bf16, "optim": "adamw_torch_fused"} if given.is_tuned else {}
    grouped = given.is_tuned and len({len(row["input_ids"]) for row in rows}) > 1
    if grouped:
        record.notes.append("rows grouped by length: the same samples, in other batches")
    order = "group_by_length" if grouped else "sequential"
    arguments = TrainingArguments(**arguments_of(given), train_sampling_strategy=order, remove_unused_columns=False, **tuned)

    def collated(batch: list[Row]) -> dict[str, Any]:
        record.tokens.append(sum(len(row["input_ids"]) for row in batch))
        return collate(batch, given.pad_token_id)

    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collated, callbacks=[Note(record)])
    trainer.train()
    record.metrics = evaluate(model, given)
    record.write(given.out)


if __name__ == "__main__":
    main()
