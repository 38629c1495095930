from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from tiny_rows import rows_of
from tunesmith.data.cache import cache_folder, cached_folder, key_of
from tunesmith.data.collate import collate_rows
from tunesmith.data.encode import Encoded, encode_rows, tokenizer_key
from tunesmith.data.lint import label_hashes, text_hashes
from tunesmith.data.rows import Rows
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

SECTION = TextClassificationSpec(problem_type="single_label_classification", labels=["bad", "good"], label_separator="none", max_length=16)
TEXTS = ["the good film", "a dull day in town", "the story of two friends and their long day again and again in the town"]
LABELS = ["good", "bad", "good"]


def encode(
    rows: Rows, work: Path, section: Any = SECTION, max_length: int = 16, tokenizer: Any = None, use_cache: bool = True, task: Any = None
) -> Encoded:
    key = key_of(text_hashes(rows).tobytes(), label_hashes(rows).tobytes()).encode()
    work.mkdir(exist_ok=True)
    return encode_rows(
        rows, key, task or TEXT_CLASSIFICATION, section, tokenizer or tiny_models.wordpiece_tokenizer(), max_length, work, use_cache
    )


def test_ids_labels_and_lengths(tmp_path: Path) -> None:
    encoded = encode(rows_of(TEXTS, LABELS), tmp_path)
    tokenizer = tiny_models.wordpiece_tokenizer()
    assert encoded.dataset["input_ids"][:] == tokenizer(TEXTS, truncation=True, max_length=16)["input_ids"]
    assert encoded.dataset["labels"][:] == [1, 0, 1]
    assert encoded.lengths.tolist() == [5, 7, 16]
    assert encoded.full_lengths.tolist() == [5, 7, 17]
    assert encoded.num_truncated == 1
    assert len(encoded) == 3
    assert encoded.dataset.column_names == ["input_ids", "labels"]


def test_pairs_have_segments(tmp_path: Path) -> None:
    encoded = encode(rows_of(TEXTS[:1], LABELS[:1], ["dull day"]), tmp_path)
    assert encoded.dataset["token_type_ids"][0] == [0] * 5 + [1] * 3


def test_the_cut_keeps_both_of_a_pair_and_the_special_tokens(tmp_path: Path) -> None:
    encoded = encode(rows_of([TEXTS[2]], ["good"], [TEXTS[2]]), tmp_path, max_length=12)
    ids, segments = encoded.dataset["input_ids"][0], encoded.dataset["token_type_ids"][0]
    assert len(ids) == 12
    assert ids.count(3) == 2
    assert segments == [0] * 6 + [1] * 6


def test_many_batches_are_one_data_set(tmp_path: Path) -> None:
    texts = [f"{tiny_models.PLAIN[index % 15]} film" for index in range(2500)]
    encoded = encode(rows_of(texts, ["good", "bad"] * 1250), tmp_path, use_cache=False)
    assert len(encoded) == len(encoded.dataset) == 2500
    assert encoded.dataset["labels"][1000:1004] == [1, 0, 1, 0]


# cache


def test_the_same_rows_are_encoded_once(tmp_path: Path, own_cache: Path) -> None:
    first, second = encode(rows_of(TEXTS, LABELS), tmp_path / "a"), encode(rows_of(TEXTS, LABELS), tmp_path / "b")
    assert not first.from_cache
    assert second.from_cache
    assert second.dataset["input_ids"][:] == first.dataset["input_ids"][:]
    assert second.full_lengths.tolist() == first.full_lengths.tolist()
    assert cache_folder() == own_cache
    assert len(list((own_cache / "encoded").iterdir())) == 1


def other_tokenizer() -> Any:
    tokenizer = tiny_models.wordpiece_tokenizer()
    tokenizer.add_tokens(["filmic"])
    return tokenizer


def left_cutting() -> Any:
    tokenizer = tiny_models.wordpiece_tokenizer()
    tokenizer.truncation_side = "left"
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"rows": rows_of([*TEXTS[:2], "another"], LABELS)},
        {"rows": rows_of(TEXTS, ["good", "good", "good"])},
        {"rows": rows_of(TEXTS, LABELS, ["a", "b", "c"])},
        {"rows": rows_of(TEXTS[::-1], LABELS)},
        {"max_length": 8},
        {"section": SECTION.model_copy(update={"labels": ["good", "bad"]})},
        {"section": SECTION.model_copy(update={"label_pattern": "(.*)"})},
        {"tokenizer": other_tokenizer()},
        {"tokenizer": left_cutting()},
        {"task": replace(TEXT_CLASSIFICATION, encode=json.loads)},
    ],
    ids=["text", "label", "pair", "order", "max_length", "labels", "pattern", "vocabulary", "truncation_side", "code"],
)
def test_what_the_result_depends_on_is_in_the_key(change: dict[str, Any], tmp_path: Path) -> None:
    first = encode(rows_of(TEXTS, LABELS), tmp_path / "a")
    changed = {"rows": rows_of(TEXTS, LABELS), **change}
    if "task" in change:
        with pytest.raises(TypeError):  # it is called, since nothing was found under its key
            encode(work=tmp_path / "b", **changed)
        return
    assert not encode(work=tmp_path / "b", **changed).from_cache
    again = encode(rows_of(TEXTS, LABELS), tmp_path / "c")
    assert again.from_cache
    assert again.dataset["input_ids"][:] == first.dataset["input_ids"][:]


def test_where_a_row_stood_is_not_in_the_key(tmp_path: Path) -> None:
    encode(rows_of(TEXTS, LABELS), tmp_path / "a")
    moved = rows_of(["dropped", *TEXTS], ["bad", *LABELS]).select([1, 2, 3])
    found = encode(moved, tmp_path / "b")
    assert found.from_cache
    assert found.rows.place(0) == "rows.csv:3"


def test_padding_and_cutting_settings_of_a_tokenizer_are_not_in_its_key() -> None:
    tokenizer = tiny_models.wordpiece_tokenizer()
    before = tokenizer_key(tokenizer)
    tokenizer(["the film", "a"], padding=True, truncation=True, max_length=4)
    assert tokenizer_key(tokenizer) == before


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_a_damaged_entry_is_made_anew(damage: str, tmp_path: Path, own_cache: Path) -> None:
    first = encode(rows_of(TEXTS, LABELS), tmp_path / "a").dataset["input_ids"][:]
    [folder] = (own_cache / "encoded").iterdir()
    arrow = folder / "encoded.arrow"
    if damage == "cut":
        content = arrow.read_bytes()
        arrow.unlink()
        arrow.write_bytes(content[:-100])
    elif damage == "gone":
        arrow.unlink()
    else:
        (folder / "complete.json").write_text("{")
    again = encode(rows_of(TEXTS, LABELS), tmp_path / "b")
    assert not again.from_cache
    assert again.dataset["input_ids"][:] == first
    assert encode(rows_of(TEXTS, LABELS), tmp_path / "c").from_cache


def test_without_the_cache_nothing_is_kept(tmp_path: Path, own_cache: Path) -> None:
    encoded = encode(rows_of(TEXTS, LABELS), tmp_path / "work", use_cache=False)
    assert not encoded.from_cache
    assert not own_cache.exists()
    assert len(list((tmp_path / "work").glob("encoded-train-*/encoded.arrow"))) == 1


def test_a_failure_leaves_no_entry(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        cached_folder("kind", "a" * 64, fail)
    assert list((own_cache / "kind").iterdir()) == []


def test_whoever_finishes_first_wins(own_cache: Path) -> None:
    """Two processes may make the same entry at once."""

    def make(folder: Path) -> None:
        (folder / "value").write_text("late")
        other, found = cached_folder("kind", "key", lambda inner: (inner / "value").write_text("early"))
        assert not found
        assert other.exists()

    folder, _ = cached_folder("kind", "key", make)
    assert (folder / "value").read_text() == "early"
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_keys_tell_parts_apart() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of(None), key_of(""), key_of([]), key_of()}) == 4


def test_the_cache_is_under_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tunesmith"


# collate


def test_rows_are_padded_to_a_multiple_of_eight_on_the_right(tmp_path: Path) -> None:
    encoded = encode(rows_of(TEXTS, LABELS), tmp_path)
    batch = collate_rows(encoded, [1, 0], TEXT_CLASSIFICATION, SECTION, pad_token_id=9)
    first, second = (encoded.dataset["input_ids"][index] for index in (1, 0))
    assert batch["input_ids"].tolist() == [[*first, 9], [*second, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1] * 7 + [0], [1] * 5 + [0] * 3]
    assert batch["labels"].tolist() == [0, 1]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_segments_are_padded_with_zero(tmp_path: Path) -> None:
    encoded = encode(rows_of(TEXTS[:2], LABELS[:2], ["dull", "dull"]), tmp_path)
    batch = collate_rows(encoded, np.asarray([0, 1]), TEXT_CLASSIFICATION, SECTION, pad_token_id=7)
    assert batch["token_type_ids"].tolist() == [[0] * 5 + [1] * 2 + [0] * 9, [0] * 7 + [1] * 2 + [0] * 7]
    assert batch["input_ids"][0, 7:].tolist() == [7] * 9


def test_padding_never_goes_beyond_max_length(tmp_path: Path) -> None:
    encoded = encode_rows(rows_of(TEXTS, LABELS), b"", TEXT_CLASSIFICATION, SECTION, tiny_models.wordpiece_tokenizer(), 7, tmp_path, False)
    assert collate_rows(encoded, [0, 1], TEXT_CLASSIFICATION, SECTION, 0)["input_ids"].shape == (2, 7)


def test_rows_without_labels_give_none(tmp_path: Path) -> None:
    rows = rows_of(TEXTS)
    encoded = encode_rows(rows, b"", TEXT_CLASSIFICATION, SECTION, tiny_models.wordpiece_tokenizer(), 16, tmp_path, False)
    assert set(collate_rows(encoded, [0, 1], TEXT_CLASSIFICATION, SECTION, 0)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("problem_type", "cells", "expected"),
    [
        ("multi_label_classification", [["good"], ["good", "bad"], []], [[0, 1], [1, 1], [0, 0]]),
        ("regression", [["0.5"], ["2"], ["-1"]], [0.5, 2.0, -1.0]),
    ],
)
def test_other_kinds_of_labels_survive_the_arrow_file(problem_type: str, cells: list, expected: list, tmp_path: Path) -> None:
    section = SECTION.model_copy(update={"problem_type": problem_type})
    encoded = encode(rows_of(TEXTS, cells), tmp_path, section)
    labels = collate_rows(encoded, [0, 1, 2], TEXT_CLASSIFICATION, section, 0)["labels"]
    assert labels.tolist() == expected
    assert labels.is_floating_point()


def test_the_cache_survives_being_copied(tmp_path: Path, own_cache: Path) -> None:
    encode(rows_of(TEXTS, LABELS), tmp_path / "a")
    moved = own_cache.with_name("elsewhere")
    shutil.copytree(own_cache, moved)
    shutil.rmtree(own_cache)
    moved.rename(own_cache)
    assert encode(rows_of(TEXTS, LABELS), tmp_path / "b").from_cache
