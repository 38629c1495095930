"""Token losses, cuts, packing and blocks change nothing: the trajectory is that of plain Trainer, and no token of the data is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tunesmith
from tiny_conversations import MAX_TOKENS, chat_tokenizer, save_chat_model, write_conversations, write_prose
from tiny_models import save_tiny, tiny_decoder, write_jsonl
from trajectories import Trajectory, assert_same_trajectory, by_trainer, by_tunesmith
from tunesmith.data.collate import IGNORED
from tunesmith.pipeline import build_job
from tunesmith.prepare import Prepared, prepare
from tunesmith.runs.directory import RunDirectory
from tunesmith.verbs.init import spec_of

NUM_STEPS = 20
SETTINGS = [
    "data.validation=none", "train.precision=fp32", "train.learning_rate=1e-2", "train.batch_size=8", "train.weight_decay=0.01",
    "train.warmup_steps=3", f"train.max_steps={NUM_STEPS}",
]  # fmt: skip
CHAT = ["task=chat", "train.max_tokens_per_micro_batch=128"]
PROSE = ["task=causal_lm", "task.max_length=24", "train.max_tokens_per_micro_batch=72"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def prepared(chat_model: Path, tmp_path: Path) -> Callable[..., Prepared]:
    """Prepares a run of the tiny Llama on conversations, or on prose for causal_lm."""

    def prepare_run(*overrides: str, model: Path = chat_model) -> Prepared:
        is_chat = "task=chat" in overrides
        data = write_conversations(tmp_path / "rows.jsonl", num_rows=36) if is_chat else write_prose(tmp_path / "prose.txt", num_lines=90)
        return prepare(spec_of(str(data), [f"model={model}", *SETTINGS, *overrides]))

    return prepare_run


def _plain(prepared: Prepared, folder: Path) -> Trajectory:
    rows = [(row["input_ids"], row["labels"]) for row in prepared.encoded["train"].dataset]

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        longest = max(len(rows[index][0]) for index in indices)

        def padded(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

        ids, labels = ([rows[index][part] for index in indices] for part in (0, 1))
        mask = [[1] * len(row) for row in ids]
        return {"input_ids": padded(ids, 0), "attention_mask": padded(mask, 0), "labels": padded(labels, IGNORED)}

    return by_trainer(prepared, folder, list(range(len(rows))), collate)


@pytest.mark.parametrize(
    "overrides",
    [
        [*CHAT, "method=full"],
        [*CHAT, "method=lora", "method.dropout=0.0", "method.rank=4"],
        [*CHAT, "method=freeze", "method.num_blocks=1"],
        [*PROSE, "method=full"],
    ],
    ids=["chat-full", "chat-lora", "chat-freeze", "causal_lm-full"],
)
def test_twenty_steps_equal_plain_trainer(overrides: list[str], prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    first = prepared(*overrides)
    assert max(len(step) for step in first.plan.batches(0)) > 2, "steps should be cut for this to say anything"
    ours = by_tunesmith(first, tmp_path / "ours")
    theirs = _plain(prepared(*overrides), tmp_path / "theirs")
    assert_same_trajectory(ours, theirs, NUM_STEPS, ())
    assert np.mean(ours[0][-3:]) < np.mean(ours[0][:3])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["train.pack=true", "train.max_tokens_per_micro_batch=200"], ["train.pack=false"]),
        (["train.batch_size=4", "train.gradient_accumulation_steps=2"], ["train.batch_size=8"]),
        (["train.max_tokens_per_micro_batch=32"], ["train.max_tokens_per_micro_batch=100000"]),
    ],
    ids=["pack", "accumulation", "micro-batches"],
)
def test_how_a_step_is_computed_changes_nothing(
    one: list[str], other: list[str], prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    trajectories = []
    for number, overrides in enumerate((one, other)):
        run = prepared("task=chat", "train.max_steps=10", *overrides)
        trajectories.append(by_tunesmith(run, tmp_path / str(number)))
    assert_same_trajectory(*trajectories, 10, ())


def _blocks(*overrides: str, data: Any, model: Path, validation: str = "none") -> tuple[Prepared, dict[str, list[list[int]]]]:
    spec = {"task": "causal_lm", "model": str(model), "data": {"train": data, "validation": validation}}
    run = prepare(spec_of(spec, ["task.max_length=16", "train.precision=fp32", *overrides]))
    return run, {split: [row["input_ids"] for row in encoded.dataset] for split, encoded in run.encoded.items()}


def _text(run: Prepared, blocks: list[list[int]]) -> str:
    ids = [token for block in blocks for token in block if token != run.tokenizer.eos_token_id]
    return str(run.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("documents", ["end_of_text", "joined"])
def test_blocks_hold_every_character_of_the_files(documents: str, chat_model: Path, tmp_path: Path) -> None:
    texts = ["\n\nthe film  was\tgood\n\n\nno, Größe 5 — ok\n" * 300, "one day in town", "again\n\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_bytes(text.replace("\n", "\r\n" if number == 2 else "\n").encode())
    files = [str(tmp_path / f"{number}.txt") for number in range(3)]
    run, blocks = _blocks(f"task.documents={documents}", data=files, model=chat_model)
    # a file's last line is ended where it has no end
    expected = [text if text.endswith("\n") else text + "\n" for text in texts]
    assert _text(run, blocks["train"]) == "".join(expected)
    joined = [token for block in blocks["train"] for token in block]
    ends = [position for position, token in enumerate(joined) if token == run.tokenizer.eos_token_id]
    if documents == "joined":
        assert not ends
    else:
        documents_read = [_text(run, [joined[start:end]]) for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]
        assert documents_read == expected
        assert ends[-1] == len(joined) - 1
    lengths = [len(block) for block in blocks["train"]]
    assert set(lengths[:-1]) == {16}
    assert 0 < lengths[-1] <= 16
    assert all(row["labels"] == row["input_ids"] for row in run.encoded["train"].dataset)


def test_rows_with_line_ends_are_whole_documents(chat_model: Path, tmp_path: Path) -> None:
    texts = ["the film\n\nwas good", "one", "  two friends \n", "again\tand again"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run, blocks = _blocks(data=str(data), model=chat_model)
    joined = [token for block in blocks["train"] for token in block]
    assert run.tokenizer.decode(joined) == "".join(f"{text}<|endoftext|>" for text in texts)


def test_a_share_for_validation_loses_no_passage(chat_model: Path, tmp_path: Path) -> None:
    lines = [f"{number} day in town\n" for number in range(4000)]
    (tmp_path / "prose.txt").write_text("".join(lines))
    run, blocks = _blocks(data=str(tmp_path / "prose.txt"), model=chat_model, validation="20%")
    found = {split: _text(run, split_blocks).splitlines(keepends=True) for split, split_blocks in blocks.items()}
    assert sorted(found["train"] + found["validation"]) == sorted(lines)
    assert 0.1 < len(found["validation"]) / len(lines) < 0.4
    # Passages that no longer follow each other are documents of their own.
    for split, split_blocks in blocks.items():
        breaks = sum(
            int(later.split()[0]) != int(earlier.split()[0]) + 1 for earlier, later in zip(found[split], found[split][1:], strict=False)
        )
        assert sum(block.count(run.tokenizer.eos_token_id) for block in split_blocks) == breaks + 1


def test_blank_lines_at_a_passages_border_are_text_too(chat_model: Path, tmp_path: Path) -> None:
    text = "\n" * 9000 + "a day in town\n" * 586 + "\n"
    (tmp_path / "prose.txt").write_text(text)
    run, blocks = _blocks(data=str(tmp_path / "prose.txt"), model=chat_model)
    assert _text(run, blocks["train"]) == text


def test_an_end_of_text_that_is_also_the_padding_is_trained(prepared: Callable[..., Prepared]) -> None:
    run = prepared(*PROSE, "train.batch_size=1000", "task.max_length=23")
    assert run.tokenizer.pad_token_id == run.tokenizer.eos_token_id
    job = build_job(run, RunDirectory.create(Path(run.data.work.name) / "run", "x"))
    rows = run.plan.drawn(0)[0]
    batch = job.step_batch(run.plan.cut(rows), rows)
    encoded = run.encoded["train"]
    trained = [part["labels"][:, 1:] for part in batch["micro_batches"]]
    eos = run.tokenizer.eos_token_id
    assert sum(int((labels == eos).sum()) for labels in trained) == 1
    assert sum(int((labels != IGNORED).sum()) for labels in trained) == batch["weight"] == int(encoded.lengths[rows].sum()) - len(rows)
    assert any(int((part["attention_mask"] == 0).sum()) for part in batch["micro_batches"]), "there should be padding"


def test_a_last_block_of_one_token_does_no_harm(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    run = prepared(*PROSE, "train.batch_size=1", "train.max_steps=none", "train.epochs=1")
    assert run.encoded["train"].lengths.min() == 1
    losses, weights = by_tunesmith(run, tmp_path / "run")
    assert losses.count(0.0) == 1
    assert np.isfinite(losses).all()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_an_answers_end_is_trained_where_it_is_the_padding(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    folder = save_chat_model(tmp_path / "model")
    tokenizer.save_pretrained(folder)
    run = prepare(spec_of(str(write_conversations(tmp_path / "rows.jsonl", 8)), [f"model={folder}", *SETTINGS, "task=chat"]))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers = [sum(message["role"] == "assistant" for message in json.loads(row["messages"])) for row in run.data.rows["train"].dataset]
    job = build_job(run, RunDirectory.create(tmp_path / "run", "x"))
    rows = run.plan.drawn(0)[0]
    parts = job.step_batch(run.plan.cut(rows), rows)["micro_batches"]
    assert sum(int((part["labels"] == end).sum()) for part in parts) == sum(answers)


def test_a_model_that_packing_leaks_in_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "opt"
    tokenizer = chat_tokenizer()
    tiny_decoder("opt", len(tokenizer), max_position_embeddings=MAX_TOKENS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(tunesmith.InputError) as caught:
        prepare(
            spec_of(str(write_conversations(tmp_path / "rows.jsonl", 8)), [f"model={folder}", *SETTINGS, "task=chat", "train.pack=true"])
        )
    problem = caught.value.problems[0]
    assert problem.code == "spec.conflict"
    assert problem.where == "override train.pack=true"
    assert problem.fix == "train.pack=false"
    assert "OPTForCausalLM" in problem.found


def test_packing_where_it_has_no_effect_is_refused(prepared: Callable[..., Prepared], tmp_path: Path) -> None:
    encoder = save_tiny("bert", tmp_path / "bert")
    rows = str(write_jsonl(tmp_path / "labels.jsonl", 60))
    refused = [
        lambda: prepared(*PROSE, "train.pack=true"),
        lambda: prepare(spec_of(rows, [f"model={encoder}", *SETTINGS, "train.pack=true"])),
    ]
    for run in refused:
        with pytest.raises(tunesmith.InputError) as caught:
            run()
        assert caught.value.code == "spec.no_effect"
        assert caught.value.problems[0].where == "override train.pack=true"
