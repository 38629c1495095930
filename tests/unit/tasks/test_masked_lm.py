"""Masked language modelling: what is drawn, what is hidden together, blocks and rows, and how a text is filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from pydantic import ValidationError

import tunesmith
from error_examples import documented
from tiny_conversations import write_prose
from tiny_models import save_tiny, wordpiece_tokenizer
from tunesmith.data.encode import EVALUATION, Encoded, training_key
from tunesmith.errors import InputError
from tunesmith.prepare import prepare
from tunesmith.tasks.masked_lm.learning import decide, encode, encode_input, fit_tokenizer, loss_weight, regroup
from tunesmith.tasks.masked_lm.masking import STARTS, draw
from tunesmith.tasks.masked_lm.section import MaskedLMSpec
from tunesmith.verbs.init import spec_of

TOKENIZER = wordpiece_tokenizer()
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
SETTINGS = ["data.validation=20%", "train.precision=fp32", "train.max_steps=2", "train.learning_rate=1e-2"]


def example(num_tokens: int = 4000, **columns: Any) -> dict[str, Any]:
    """[CLS], many words, [SEP]."""
    ids = [CLS, *(5 + np.arange(num_tokens) % 20).tolist(), SEP]
    return {"input_ids": ids, **columns}


def drawn(section: MaskedLMSpec, row: dict[str, Any], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids before, ids the model sees, labels)."""
    found = draw(section, TOKENIZER, row, np.random.default_rng(seed))
    return np.asarray(row["input_ids"]), np.asarray(found["input_ids"]), np.asarray(found["labels"])


@pytest.mark.parametrize(("chance", "masked", "random"), [(0.15, 0.8, 0.1), (0.4, 1.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.2, 0.8)])
def test_shares_of_what_is_hidden_and_of_what_stands_there(chance: float, masked: float, random: float) -> None:
    section = MaskedLMSpec(mlm_probability=chance, mask_replace_prob=masked, random_replace_prob=random)
    before, seen, labels = drawn(section, example())
    hidden = labels != -100
    assert abs(hidden.mean() - chance) < 0.03
    assert (labels[hidden] == before[hidden]).all()
    assert (seen[~hidden] == before[~hidden]).all()
    assert abs((seen[hidden] == MASK).mean() - masked) < 0.06
    # a drawn token is the one that was there one time in as many as there are tokens
    other = (seen[hidden] != MASK) & (seen[hidden] != before[hidden])
    assert abs(other.mean() - random * (1 - 1 / len(TOKENIZER))) < 0.06


def test_special_tokens_are_never_hidden() -> None:
    row = {"input_ids": [CLS, *[SEP, UNKNOWN, 7] * 200, SEP]}
    for masking in ("tokens", "words", "spans"):
        before, _, labels = drawn(MaskedLMSpec(masking=masking, mlm_probability=0.9), row | {STARTS: [1] * len(row["input_ids"])})
        assert set(before[labels != -100]) == {7}


@pytest.mark.parametrize("masking", ["words", "spans"])
def test_words_are_hidden_whole(masking: str) -> None:
    starts = [1, *([1, 0, 0, 1, 0] * 200), 1]
    row = example(1000, **{STARTS: starts})
    _, _, labels = drawn(MaskedLMSpec(masking=masking, mlm_probability=0.3), row)
    hidden = labels != -100
    words = np.cumsum(starts)
    for word in np.unique(words[1:-1]):
        assert len(set(hidden[words == word])) == 1
    assert abs(hidden.mean() - 0.3) < 0.06


def test_a_word_does_not_go_on_over_a_special_token() -> None:
    row = {"input_ids": [CLS, 7, 8, SEP, 9, 10, SEP], STARTS: [1, 1, 0, 1, 0, 0, 1]}
    patterns = {tuple(drawn(MaskedLMSpec(masking="words", mlm_probability=0.5), row, seed)[2] != -100) for seed in range(60)}
    assert {(pattern[1:3], pattern[4:6]) for pattern in patterns} == {
        (one, other) for one in ((False, False), (True, True)) for other in ((False, False), (True, True))
    }


def test_spans_take_the_share_and_one_fate() -> None:
    section = MaskedLMSpec(masking="spans", mlm_probability=0.2, mask_replace_prob=0.5, random_replace_prob=0.0, span_geometric_p=0.2)
    row = example(500, **{STARTS: [1] * 502})
    before, seen, labels = drawn(section, row)
    hidden = labels != -100
    assert hidden.sum() == 100, "words of one token: exactly the share"
    edges = np.diff(np.r_[0, hidden, 0])
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    assert lengths.mean() > 2, "spans, not single words"
    is_masked = (seen == MASK) & hidden
    changes = (np.diff(is_masked[hidden].astype(int)) != 0).sum()
    assert 0 < changes < len(lengths) * 2
    assert ((seen == before) | is_masked).all()


def test_loss_weight_counts_what_is_hidden() -> None:
    assert loss_weight(MaskedLMSpec(), [[5, -100, 3], [-100]]) == 2
    assert loss_weight(MaskedLMSpec(), [[-100, -100]]) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_replace_prob": 0.95},
        {"span_geometric_p": 0.5},
        {"masking": "words", "max_span_words": 3},
        {"mlm_probability": 0.0},
        {"max_length": 7},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MaskedLMSpec(**settings)


def rows_of(texts: list[str], passages: bool = False) -> dict[str, list[Any]]:
    return {"text": texts, "file": [0] * len(texts), "passage": [str(n) if passages else None for n in range(len(texts))]}


def test_blocks_hold_all_tokens_between_special_ones() -> None:
    section, texts = MaskedLMSpec(masking="words"), ["the film was good", "a zzz day", "two friends and their long day in town again"]
    columns = encode(section, rows_of(texts), TOKENIZER, 8)
    columns["row"] = [0, 1, 2]
    parts = list(regroup(section, [columns], 8))
    found = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    plain = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    inner = [token for block in found["input_ids"] for token in block[1:-1]]
    assert inner == [*plain[0], SEP, *plain[1], SEP, *plain[2]]
    assert all(block[0] == CLS and block[-1] == SEP for block in found["input_ids"])
    assert [len(block) for block in found["input_ids"]] == found["full_length"]
    assert {len(block) for block in found["input_ids"][:-1]} == {8}
    starts = [start for block in found[STARTS] for start in block[1:-1]]
    pieces = TOKENIZER.convert_ids_to_tokens(inner)
    assert starts == [int(not piece.startswith("##")) for piece in pieces]
    assert found["row"] == [0, 1, 2, 2]


def test_rows_are_cut_and_stay_rows() -> None:
    section = MaskedLMSpec(examples="rows")
    columns = encode(section, rows_of(["the film was good and their long day", "one"]), TOKENIZER, 8) | {"row": [0, 1]}
    (found,) = regroup(section, [columns], 8)
    assert [len(ids) for ids in found["input_ids"]] == [8, 5]
    assert found["full_length"] == [10, 5]
    assert list(regroup(MaskedLMSpec(), [], 8)) == []


def test_special_tokens_that_a_text_spells_out_are_text() -> None:
    ids = encode(MaskedLMSpec(), rows_of(["the [MASK] film"]), TOKENIZER, 8)["input_ids"][0]
    assert MASK not in ids
    assert len(ids) > 3


def test_a_row_of_running_text_is_none() -> None:
    class Facts:
        sample = ({"text": "a", "\0passage": 0},)

    assert decide(MaskedLMSpec(), Facts) == []
    with pytest.raises(InputError) as caught:
        decide(MaskedLMSpec(examples="rows"), Facts)
    assert "data.format=lines" in caught.value.problems[0].fix


def test_a_tokenizer_must_have_a_mask_and_tell_words() -> None:
    tokenizer = wordpiece_tokenizer()
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=99, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    assert fit_tokenizer(MaskedLMSpec(masking="words"), tokenizer, model) == []
    tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(InputError) as caught:
        fit_tokenizer(MaskedLMSpec(masking="words"), tokenizer, model)
    assert caught.value.problems[0].where == "task.masking"
    tokenizer.mask_token = None
    with pytest.raises(InputError) as caught:
        fit_tokenizer(MaskedLMSpec(), tokenizer, model)
    assert caught.value.code == "model.tokenizer"


def test_a_text_to_be_filled_in_has_a_mask_and_fits() -> None:
    texts = ["the <mask> film", "the [MASK] was [MASK]", "no mask", "the [MASK] " + "film " * 20]
    found = encode_input(MaskedLMSpec(), rows_of(texts), TOKENIZER, 16)
    assert [sum(label >= 0 for label in row) for row in found["labels"]] == [1, 2, 0, 1]
    assert [fault and fault[0] for fault in found["fault"]] == [None, None, "data.no_mask", "data.too_long"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("models") / "bert", "AutoModelForMaskedLM")


def encoded_prose(checkpoint: Path, folder: Path, *overrides: str) -> Encoded:
    data = str(write_prose(folder / "prose.txt", 1500))
    return prepare(spec_of(data, ["task=masked_lm", f"model={checkpoint}", *SETTINGS, "task.max_length=24", *overrides])).encoded["train"]


def test_what_is_drawn_depends_on_seed_epoch_and_example_alone(checkpoint: Path, tmp_path: Path) -> None:
    encoded = encoded_prose(checkpoint, tmp_path)

    def labels(indices: list[int], key: tuple[int, ...]) -> list[list[int]]:
        return [np.asarray(row).tolist() for row in encoded.examples(indices, key)["labels"]]

    first = labels([0, 1, 2, 3], training_key(0, 0))
    assert labels([3, 1], training_key(0, 0)) == [first[3], first[1]]
    others = [labels([0, 1, 2, 3], key) for key in (training_key(0, 1), training_key(1, 0), EVALUATION)]
    assert all(other != first for other in others)
    assert len({str(other) for other in others}) == 3
    assert len({str([label != -100 for label in row]) for row in first}) == 4
    assert encoded.token_ids.tolist() == list(range(len(TOKENIZER)))


def test_a_run_is_proven_and_fills_in_as_the_pipeline_does(checkpoint: Path, tmp_path: Path) -> None:
    data = str(write_prose(tmp_path / "prose.txt", 1500))
    overrides = ["task=masked_lm", f"model={checkpoint}", *SETTINGS, "task.max_length=24", "task.top_k=3", "task.masking=words"]
    run = tunesmith.train(data, overrides, run=tmp_path / "run", quiet=True)
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    assert {"perplexity", "token_accuracy", "loss"} == set(run.metrics)
    again = run.evaluate(quiet=True)
    assert again["metrics"] == pytest.approx(run.metrics, rel=1e-6), "the same tokens are hidden each time"
    assert again["metrics"]["perplexity"] == pytest.approx(np.exp(again["metrics"]["loss"]))
    texts = ["the [MASK] was good", "a <mask> story of [MASK] friends"]
    fill = transformers.pipeline("fill-mask", str(run.path / "model"), device="cpu")
    expected = fill([text.replace("<mask>", "[MASK]") for text in texts], top_k=3)
    found = run.predict(texts)
    assert [row["text"] for row in found] == texts
    for row, wanted in zip(found, [[expected[0]], expected[1]], strict=True):
        assert [[candidate["token"] for candidate in ranked] for ranked in row["masks"]] == [
            [one["token"] for one in ranked] for ranked in wanted
        ]
        assert [[candidate["token_str"] for candidate in ranked] for ranked in row["masks"]] == [
            [one["token_str"] for one in ranked] for ranked in wanted
        ]
        for ranked, one in zip(row["masks"], wanted, strict=True):
            assert [candidate["score"] for candidate in ranked] == pytest.approx([candidate["score"] for candidate in one], rel=1e-4)
    assert found[0]["filled"] == expected[0][0]["sequence"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    assert list(run.predict_file(str(tmp_path / "texts.txt"), quiet=True)) == found, "one text a line"
    assert run.evaluate(data, quiet=True)["num_tokens"] > again["num_tokens"]
    with pytest.raises(InputError) as caught:
        run.predict(["the film was good"])
    assert caught.value.code == "data.no_mask"
    documented("data.no_mask", "tunesmith predict RUN --text 'the film was good'", str(caught.value), {})
