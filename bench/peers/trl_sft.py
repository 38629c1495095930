"""trl's SFTTrainer: as it ships (bf16, gradient checkpointing), tuned (no checkpointing; chats without padding), and packed."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bench.peers.given import Given, Row, evaluate, load_model, lora_config, num_trainable, read_request
from bench.peers.record import Record
from bench.peers.trainer import Note, arguments_of

PACKED_BATCH_SIZE = 2


def settings_of(given: Given, rows: list[Row], record: Record) -> dict[str, Any]:
    """What differs between the variants."""
    if not given.is_tuned:
        return {}
    tuned: dict[str, Any] = {"gradient_checkpointing": False, "bf16": given.bf16}
    if given.variant == "packed":
        blocks = -(-sum(len(row["input_ids"]) for row in rows) // given.max_length)
        accumulated = max(round(blocks / given.steps / PACKED_BATCH_SIZE), 1)
        record.notes.append(
            f"packed to {given.max_length} tokens, {PACKED_BATCH_SIZE} x {accumulated} blocks a step: the same samples, in other batches"
        )
        packed = {"packing": True, "per_device_train_batch_size": PACKED_BATCH_SIZE, "gradient_accumulation_steps": accumulated}
        return {**tuned, **packed}
    if len({len(row["input_ids"]) for row in rows}) > 1:
        # trl cuts nothing that is not padded, and asks to be told so; the rows are short enough already
        tuned.update(padding_free=True, max_length=None)
    return tuned


def main() -> None:
    """Trains as asked."""
    given, record = read_request(), Record()
    rows = given.rows()
    tokenizer = AutoTokenizer.from_pretrained(given.model_path)
    own = {**arguments_of(given), "max_length": given.max_length, **settings_of(given, rows, record)}
    arguments = SFTConfig(**own, train_sampling_strategy="sequential")
    plain = load_model(Given(given.folder, given.variant, given.scratch, given.out, {**given.settings, "lora": None}))
    dataset = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    adapters = lora_config(given) if given.lora else None
    trainer = SFTTrainer(
        plain, arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=adapters, callbacks=[Note(record)]
    )
    record.trainable = num_trainable(trainer.model)
    collator: DataCollatorForLanguageModeling = trainer.data_collator
    counted = Counted(collator, record)
    trainer.data_collator = counted
    trainer.train()
    accumulated = arguments.gradient_accumulation_steps
    record.tokens = [sum(record.tokens[start : start + accumulated]) for start in range(0, len(record.tokens), accumulated)]
    record.metrics = evaluate(trainer.model, given)
    record.write(given.out)


class Counted:
    """A collator that notes the tokens of each batch."""

    def __init__(self, collator: Any, record: Record) -> None:
        self.collator, self.record = collator, record

    def __call__(self, batch: list[Row]) -> Any:
        self.record.tokens.append(sum(len(row["input_ids"]) for row in batch))
        return self.collator(batch)


if __name__ == "__main__":
    main()
