"""New models: tokenizers trained on the training rows alone, the same each time; configurations by family and size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file

import tunesmith
from tiny_conversations import write_prose
from tiny_models import write_jsonl
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError
from tunesmith.models.families import FAMILIES, SIZES, check_family, family_config
from tunesmith.models.new_model import make_model
from tunesmith.models.new_tokenizer import train_tokenizer
from tunesmith.prepare import prepare
from tunesmith.registry import TASKS
from tunesmith.spec import NewModelSpec, TokenizerSpec
from tunesmith.verbs.init import spec_of

KINDS = ("wordpiece", "bpe", "unigram", "word", "character")
TEXTS = [
    f"The {kind} lobster, number {number},\n lives in Größe-{number % 7} near two friends."
    for number in range(60)
    for kind in ("red", "blue")
]
SMALL = {"hidden_size": 16, "intermediate_size": 32}


def rows(texts: list[str] = TEXTS) -> Rows:
    columns = {"text": texts, "file": [0] * len(texts), "line": list(range(1, len(texts) + 1))}
    return Rows("train", datasets.Dataset.from_dict(columns), ["rows.txt"])


def make(spec: NewModelSpec, folder: Path, task: str) -> Any:
    files, decisions = make_model(spec, TASKS.get(task), rows(), folder, use_cache=False)
    return files, decisions, transformers.AutoTokenizer.from_pretrained(files.path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_the_same_each_time_and_as_large_as_asked(kind: str) -> None:
    full = train_tokenizer(TokenizerSpec(train=kind), FAMILIES["bert"], lambda: iter(TEXTS))
    size = full.get_vocab_size() - 2
    spec = TokenizerSpec(train=kind, vocab_size=size)
    found = [train_tokenizer(spec, FAMILIES["bert"], lambda: iter(TEXTS)) for _ in range(3)]
    assert {tokenizer.to_str() for tokenizer in found} == {found[0].to_str()}
    assert found[0].get_vocab_size() == size
    assert [found[0].token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_the_rows_do_not_have_is_refused(kind: str) -> None:
    with pytest.raises(InputError) as caught:
        train_tokenizer(TokenizerSpec(train=kind, vocab_size=50_000), FAMILIES["bert"], lambda: iter(TEXTS))
    problem = caught.value.problems[0]
    assert (problem.code, problem.where) == ("spec.value", "model.tokenizer.vocab_size")
    most = int(problem.fix.split()[2].rstrip(","))
    assert train_tokenizer(TokenizerSpec(train=kind, vocab_size=most), FAMILIES["bert"], lambda: iter(TEXTS)).get_vocab_size() == most


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_vocabulary_smaller_than_the_letters_is_refused(kind: str) -> None:
    with pytest.raises(InputError) as caught:
        train_tokenizer(TokenizerSpec(train=kind, vocab_size=12), FAMILIES["bert"], lambda: iter(TEXTS))
    assert "at least" in caught.value.problems[0].fix


@pytest.mark.parametrize("kind", KINDS)
def test_small_letters(kind: str) -> None:
    tokenizer = train_tokenizer(TokenizerSpec(train=kind, lowercase=True), FAMILIES["bert"], lambda: iter(TEXTS))
    assert tokenizer.encode("THE LOBSTER").ids == tokenizer.encode("the lobster").ids
    assert 1 not in tokenizer.encode("THE").ids


@pytest.mark.parametrize("kind", ["bpe", "character"])
def test_what_was_cut_is_put_together_again(kind: str) -> None:
    tokenizer = train_tokenizer(TokenizerSpec(train=kind), FAMILIES["gpt2"], lambda: iter(TEXTS))
    text = "The red friend\n\n  lives near Größe-3, number 1."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_reads_as_its_models_do(family: str, tmp_path: Path) -> None:
    spec = NewModelSpec(new=family, tokenizer=TokenizerSpec(train="character"))
    config_of = getattr(transformers, FAMILIES[family].config)
    task = next(
        name
        for name in ("seq2seq", "masked_lm", "causal_lm")
        if config_of in getattr(transformers, TASKS.get(name).auto_model)._model_mapping
    )
    files, _, tokenizer = make(spec, tmp_path, task)
    before, _, after = FAMILIES[family].single.partition("$A")
    text = tokenizer.convert_ids_to_tokens(tokenizer("red")["input_ids"])
    assert text == [*before.split(), "r", "e", "d", *after.split()]
    pair = tokenizer("re", "d")
    assert len([token for token in tokenizer.convert_ids_to_tokens(pair["input_ids"]) if token in "red"]) == 3
    assert ("token_type_ids" in pair) == (family in ("bert", "electra"))
    config = transformers.AutoConfig.from_pretrained(files.path)
    assert config.vocab_size == len(tokenizer)
    for name in ("pad", "bos", "eos"):
        token = getattr(tokenizer, f"{name}_token_id")
        if name in [key.removesuffix("_token") for key in FAMILIES[family].special_tokens]:
            assert getattr(config, f"{name}_token_id") == token
    assert tokenizer.model_max_length == 512
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    layers, hidden, _ = SIZES["tiny"]
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), hidden)
    assert config.num_hidden_layers == layers


def test_settings_of_the_configuration_are_strict(tmp_path: Path) -> None:
    _, _, tokenizer = make(NewModelSpec(new="gpt2"), tmp_path, "causal_lm")
    config = family_config(NewModelSpec(new="gpt2", config={"hidden_size": 64, "resid_pdrop": 0}), tokenizer)
    assert (config.n_embd, config.resid_pdrop) == (64, 0)
    settings = {"resid_drop": 0.1, "n_layer": "two", "n_head": True, "vocab_size": 100, "id2label": {}}
    with pytest.raises(InputError) as caught:
        check_family(NewModelSpec(new="gpt2", config=settings), TASKS.get("causal_lm"))
    found = [(problem.code, problem.where.rpartition(".")[2]) for problem in caught.value.problems]
    codes = ["spec.unknown_key", "spec.value", "spec.value", "spec.conflict", "spec.conflict"]
    assert found == list(zip(codes, settings, strict=True))
    assert caught.value.problems[0].fix == "did you mean resid_pdrop?"


Prepare = Callable[..., Any]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepares a run of a new model on prose, or on labelled texts."""

    def run(task: str, model: dict[str, Any], *overrides: str) -> Any:
        labelled = task == "text_classification"
        data = write_jsonl(tmp_path / "rows.jsonl") if labelled else write_prose(tmp_path / "prose.txt", 300)
        spec = {"task": task, "model": model, "data": {"train": str(data), "validation": "25%" if labelled else "none"}, "method": "full"}
        return prepare(spec_of(spec, ["train.precision=fp32", "train.max_steps=2", *overrides]))

    return run


@pytest.mark.parametrize(("task", "family"), [("masked_lm", "modernbert"), ("text_classification", "distilbert"), ("causal_lm", "llama")])
def test_weights_are_those_of_the_seed(task: str, family: str, prepared: Prepare) -> None:
    states = [prepared(task, {"new": family}, f"train.seed={seed}").model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0] if states[0][name].shape == states[2][name].shape)


def test_a_classifier_has_its_labels_and_a_tokenizer_of_the_training_rows(prepared: Prepare) -> None:
    run = prepared("text_classification", {"new": "bert", "tokenizer": {"train": "word"}})
    assert run.model.config.id2label == {0: "bad", 1: "good"}
    seen = {word for row in run.data.rows["train"].dataset["text"] for word in row.split()}
    assert set(run.tokenizer.get_vocab()) - set(run.tokenizer.all_special_tokens) == seen
    decided = {decision.field: decision.value for decision in run.resolved.decisions}
    assert decided["model.tokenizer.vocab_size"] == len(run.tokenizer) == run.spec.model.tokenizer.vocab_size
    assert decided["tokenizer"].startswith("word, ")


@pytest.mark.parametrize(
    ("task", "model", "overrides", "code", "where"),
    [
        ("masked_lm", {"new": "brt"}, [], "spec.unknown_name", "model.new"),
        ("masked_lm", {"new": "gpt2"}, [], "spec.conflict", "model.new"),
        ("causal_lm", {"new": "roberta"}, ["task.documents=joined"], "model.load", "model.new"),
        ("masked_lm", {"new": "bert"}, ["method=lora"], "spec.conflict", "override method=lora"),
        ("masked_lm", {"new": "bert"}, ["method=freeze"], "spec.conflict", "override method=freeze"),
        ("text_classification", {"new": "bert"}, ["method=linear_probe"], "spec.conflict", "override method=linear_probe"),
        ("masked_lm", {"new": "bert", "config": {"num_attention_heads": 3}}, [], "model.load", "model.config"),
        ("masked_lm", {"new": "bert", "size": "huge"}, [], "spec.value", "the spec"),
        ("masked_lm", {"new": "bert", "tokenizer": {"train": "wordpieces"}}, [], "spec.value", "the spec"),
        ("masked_lm", {"name": "minilm", "tokenizer": {"train": "bpe"}}, [], "spec.unknown_key", "the spec"),
        ("masked_lm", {"new": "bert", "revision": "main"}, [], "spec.unknown_key", "the spec"),
    ],
)
def test_what_cannot_be_is_refused(
    task: str, model: dict[str, Any], overrides: list[str], code: str, where: str, prepared: Prepare
) -> None:
    with pytest.raises(InputError) as caught:
        prepared(task, model, *overrides)
    assert (caught.value.code, caught.value.problems[0].where) == (code, where)


def test_a_new_language_model_is_trained_saved_proven_and_writes(tmp_path: Path) -> None:
    data = write_prose(tmp_path / "prose.txt", 1500)
    spec = {
        "task": {"name": "causal_lm", "max_length": 32, "generation": {"max_new_tokens": 5}},
        "model": {
            "new": "llama",
            "tokenizer": {"train": "character"},
            "config": {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 1},
        },
        "data": {"train": str(data), "validation": "20%"},
        "method": "full",
        "train": {"max_steps": 3, "precision": "fp32", "learning_rate": 1e-2},
    }
    run = tunesmith.train(spec, run=tmp_path / "run", quiet=True)
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    saved = load_file(run.path / "model" / "model.safetensors")
    assert "lm_head.weight" not in saved, "tied"
    assert "base_model" not in (run.path / "model" / "README.md").read_text()
    (row,) = run.predict(["the film"])
    assert row["num_tokens"] <= 5
    plain = transformers.pipeline("text-generation", str(run.path / "model"), device="cpu")
    assert plain("the film", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"] == row["answer"]
    with pytest.raises(InputError) as caught:
        run.evaluate(compare=True, quiet=True)
    assert caught.value.code == "usage.argument"
