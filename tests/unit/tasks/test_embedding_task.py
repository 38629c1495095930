"""Embedding: what rows say, what becomes of `auto`, what the model reads, its losses and vectors, and what its folder says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import tiny_models
from tiny_pairs import write_pairs
from tunesmith.data.cells import canonical_label
from tunesmith.errors import InputError
from tunesmith.prepare import prepare
from tunesmith.spec_file import Source
from tunesmith.tasks.embedding import EMBEDDING as TASK
from tunesmith.tasks.embedding.decisions import LOSSES
from tunesmith.tasks.embedding.folder import finish
from tunesmith.tasks.embedding.learning import pool
from tunesmith.tasks.embedding.section import EmbeddingSpec
from tunesmith.verbs.init import guess_task, spec_of, write_spec

DECIDED = {
    "examples": "pairs",
    "loss": "multiple_negatives_ranking",
    "scale": 20.0,
    "distance": "none",
    "margin": "none",
    "score_range": "none",
    "no_duplicates": True,
}
SETTLED = {**DECIDED, "pooling": "mean", "normalize": False, "max_length": 64}


def section(**settings: Any) -> EmbeddingSpec:
    return EmbeddingSpec(**{**SETTLED, **settings})


def decided(columns: str, labels: list[Any] = [], **settings: Any) -> dict[str, Any]:  # noqa: B006
    counts = Counter((str(label),) for label in labels)
    found = TASK.decide(EmbeddingSpec(**settings), SimpleNamespace(columns={name: name for name in columns.split()}, label_counts=counts))
    return {decision.field.removeprefix("task."): decision.value for decision in found}


@pytest.mark.parametrize(
    ("columns", "labels", "expected"),
    [
        ("text pair", [], DECIDED),
        ("text pair negative", [], {**DECIDED, "examples": "triplets"}),
        ("text pair label", [0.5, 4], {**DECIDED, "examples": "scored_pairs", "loss": "cosent", "no_duplicates": False, "score_range": [0.0, 4.0]}),
        ("text pair label", [0.5, -1], {**DECIDED, "examples": "scored_pairs", "loss": "cosent", "no_duplicates": False, "score_range": [-1.0, 1.0]}),
        ("text pair label", [0.5, 0], {**DECIDED, "examples": "scored_pairs", "loss": "cosent", "no_duplicates": False, "score_range": [0.0, 1.0]}),
        ("text pair label", [1, 0, "1.0"], {**DECIDED, "examples": "labelled_pairs", "loss": "contrastive", "no_duplicates": False, "scale": "none", "distance": "cosine", "margin": 0.5}),
    ],
)  # fmt: skip
def test_examples_and_loss_are_seen_from_the_columns(columns: str, labels: list[Any], expected: dict[str, Any]) -> None:
    found = decided(columns, labels)
    assert found.pop("a step", "one graph") == "one graph"
    assert found == expected


def test_a_step_is_whole_where_rows_are_compared() -> None:
    kinds = {loss: TASK.whole_step(section(loss=loss)) for loss in LOSSES}
    compared = {"multiple_negatives_ranking", "cosent", "angle", "online_contrastive"}
    assert kinds == {loss: "one_graph" if loss in compared else None for loss in LOSSES}
    assert TASK.whole_step(section(gradient_cache=True)) == "gradient_cache"


def test_margins_of_triplets_follow_the_distance() -> None:
    assert decided("text pair negative", loss="triplet")["margin"] == 5.0
    assert decided("text pair negative", loss="triplet", distance="cosine")["margin"] == 0.5


@pytest.mark.parametrize("kind", ["pairs", "triplets", "scored_pairs", "labelled_pairs"])
def test_init_sees_pairs_by_their_names(tmp_path: Path, kind: str) -> None:
    data = write_pairs(tmp_path / "rows.jsonl", kind)
    is_seen = kind in ("pairs", "triplets")
    assert guess_task(Source({"data": {"train": str(data)}}, "x", tmp_path)) == ("embedding" if is_seen else "text_classification")
    written = write_spec(str(data), "embedding")
    assert "embedding" in written
    (tmp_path / "spec.yaml").write_text(written)
    assert spec_of(tmp_path / "spec.yaml").task.name == "embedding"


def test_texts_of_a_row_lie_end_to_end() -> None:
    tokenizer = tiny_models.wordpiece_tokenizer()
    batch = {"text": ["the film", "good " * 9], "pair": ["a story", "day"]}
    found = TASK.encode(section(), batch, tokenizer, 6)
    ids = [tokenizer(text, truncation=True, max_length=6)["input_ids"] for text in ("the film", "a story")]
    assert found["input_ids"][0] == ids[0] + ids[1]
    assert found["token_type_ids"][0] == [0] * 4 + [1] * 4
    assert found["full_length"] == [8, 11 + 3]
    assert len(found["input_ids"][1]) == 6 + 3
    assert found["labels"] == [0.0, 0.0]
    [_, fault] = TASK.encode(section(), {"text": ["good", "good"], "pair": ["day", "\u200b"]}, tokenizer, 6)["fault"]
    assert fault[:2] == ("data.empty_text", "the pair has no token")


@pytest.mark.parametrize(("score_range", "expected"), [([0, 5], [0.0, 0.5, 1.0]), ([-1, 1], [0.0, 1.0]), ([1, 5], [0.0, 0.5])])
def test_scores_become_cosines(score_range: list[float], expected: list[float]) -> None:
    scores = {(0, 5): ["0", "2.5", "5"], (-1, 1): ["0", "1"], (1, 5): ["1", "3"]}[tuple(score_range)]
    found = [TASK.target(section(examples="scored_pairs", score_range=score_range), canonical_label(score)[0]) for score in scores]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_pooling_is_that_of_sentence_transformers(pooling: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    hidden = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 5, 1, 7])[:, None]
    expected = Pooling(6, pooling)({"token_embeddings": hidden, "attention_mask": mask.long()})["sentence_embedding"]
    torch.testing.assert_close(pool(hidden, mask, pooling), expected)


@pytest.mark.parametrize("kind", sorted([*tiny_models.ENCODERS, "gpt2", "llama", "qwen2"]))
def test_a_text_has_the_vector_it_has_alone(kind: str, tmp_path: Path) -> None:
    """Whatever lies beside it in the row and the batch."""
    folder = tiny_models.save_tiny(kind, tmp_path)
    model, tokenizer = transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    settled = section(pooling="lasttoken" if kind in tiny_models.DECODERS else "mean")
    TASK.fit_tokenizer(settled, tokenizer, model)
    batch = {"text": ["the film was good", "a day"], "pair": ["a long story of two friends again and again", "town"]}
    encoded = TASK.encode(settled, batch, tokenizer, 64)
    width = max(map(len, encoded["input_ids"]))

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in encoded[name]])

    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded["input_ids"]])
    inputs = {
        "input_ids": padded("input_ids", model.config.pad_token_id),
        "token_type_ids": padded("token_type_ids", 0),
        "attention_mask": mask,
    }
    with torch.inference_mode():
        found = TASK.forward(settled, model, inputs, None)
        for row in range(2):
            for number, name in enumerate(("text", "pair")):
                alone = tokenizer(batch[name][row], return_tensors="pt", return_token_type_ids=False)
                hidden = model(**alone).last_hidden_state
                expected = pool(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool), str(settled.pooling))[0]
                torch.testing.assert_close(found[row, number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "texts", "settings"),
    [
        ("multiple_negatives_ranking", 3, {"scale": 7.0}),
        ("cosine_similarity", 2, {}),
        ("cosent", 2, {"scale": 7.0}),
        ("angle", 2, {"scale": 7.0}),
        ("triplet", 3, {"distance": "manhattan", "margin": 2.0}),
        ("triplet", 3, {"distance": "cosine", "margin": 0.3}),
        ("contrastive", 2, {"distance": "euclidean", "margin": 1.5}),
        ("contrastive", 2, {"distance": "cosine", "margin": 0.5}),
        ("online_contrastive", 2, {"distance": "cosine", "margin": 0.5}),
    ],
)
def test_losses_are_those_of_sentence_transformers(loss: str, texts: int, settings: dict[str, Any]) -> None:
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.losses.contrastive import SiameseDistanceMetric
    from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric

    vectors = torch.randn(12, texts, 8, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(12) % 2).float()
    named = {
        "multiple_negatives_ranking": "MultipleNegativesRankingLoss", "cosine_similarity": "CosineSimilarityLoss", "cosent": "CoSENTLoss",
        "angle": "AnglELoss", "triplet": "TripletLoss", "contrastive": "ContrastiveLoss", "online_contrastive": "OnlineContrastiveLoss",
    }[loss]  # fmt: skip
    arguments: dict[str, Any] = {"scale": settings["scale"]} if "scale" in settings else {}
    if loss == "triplet":
        distances = {"manhattan": TripletDistanceMetric.MANHATTAN, "cosine": TripletDistanceMetric.COSINE}
        arguments = {"distance_metric": distances[settings["distance"]], "triplet_margin": settings["margin"]}
    elif "margin" in settings:
        siamese = {"euclidean": SiameseDistanceMetric.EUCLIDEAN, "cosine": SiameseDistanceMetric.COSINE_DISTANCE}
        arguments = {"distance_metric": siamese[settings["distance"]], "margin": settings["margin"]}
    columns = [{"sentence_embedding": column} for column in vectors.unbind(1)]
    expected = getattr(losses, named)(lambda features: features, **arguments)(columns, labels)
    found = TASK.loss(section(loss=loss, **{"scale": "none", **settings}), vectors, labels, 0.0)
    assert float(found) == pytest.approx(12 * float(expected), rel=1e-5)


@pytest.mark.parametrize(("examples", "missing"), [("scored_pairs", "label"), ("labelled_pairs", "label"), ("triplets", "negative")])
def test_rows_of_another_kind_are_refused(examples: str, missing: str) -> None:
    with pytest.raises(InputError, match=f"need a column for the {missing}") as caught:
        list(TASK.lint(section(examples=examples), {"text": ["a"], "pair": ["b"]}))
    assert caught.value.code == "data.missing_column"


def test_matryoshka_is_the_sum_over_sizes() -> None:
    vectors, labels = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(6)
    cut = [TASK.loss(section(), vectors[..., :size], labels, 0.0) for size in (8, 4)]
    found = TASK.loss(section(matryoshka_dimensions=[8, 4]), vectors, labels, 0.0)
    assert float(found) == pytest.approx(float(cut[0] + cut[1]), rel=1e-5)


def folder_with(tmp_path: Path, **files: Any) -> tuple[Any, Any]:
    folder = tiny_models.save_tiny("bert", tmp_path)
    for name, content in files.items():
        path = folder / {"pooling": "1_Pooling/config.json", "modules": "modules.json", "bert": "sentence_bert_config.json"}[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder)


def modules(*names: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{name}", "path": f"1_{name}" if index else ""} for index, name in enumerate(names)]


def autos(**settings: Any) -> EmbeddingSpec:
    return section(**{"pooling": "auto", "normalize": "auto", "max_length": "auto", **settings})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {"pooling": "mean", "normalize": False, "max_length": 64}),
        (
            {"modules": modules("Transformer", "Pooling", "Normalize"), "pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "bert": {"max_seq_length": 32}},
            {"pooling": "cls", "normalize": True, "max_length": 32},
        ),
        ({"modules": modules("Transformer", "Pooling"), "pooling": {"pooling_mode": "max"}}, {"pooling": "max", "normalize": False, "max_length": 64}),
    ],
)  # fmt: skip
def test_what_a_folder_says(tmp_path: Path, files: dict[str, Any], expected: dict[str, Any]) -> None:
    tokenizer, model = folder_with(tmp_path, **files)
    found = {decision.field.removeprefix("task."): decision.value for decision in TASK.fit_tokenizer(autos(), tokenizer, model)}
    assert found == expected


def test_a_causal_model_is_read_at_its_end(tmp_path: Path) -> None:
    folder = tiny_models.save_tiny("llama", tmp_path, "AutoModelForCausalLM")
    found = TASK.fit_tokenizer(autos(), *(kind.from_pretrained(folder) for kind in (transformers.AutoTokenizer, transformers.AutoModel)))
    assert {"task.pooling": "lasttoken"}.items() <= {decision.field: decision.value for decision in found}.items()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"modules": modules("Transformer", "Pooling", "Dense"), "pooling": {"pooling_mode": "mean"}}, "Dense"),
        ({"modules": modules("Transformer", "Pooling"), "pooling": {"pooling_mode": "weightedmean"}}, "weightedmean"),
    ],
)
def test_parts_that_would_be_lost_are_refused(tmp_path: Path, files: dict[str, Any], found: str) -> None:
    tokenizer, model = folder_with(tmp_path, **files)
    with pytest.raises(InputError, match=found) as caught:
        TASK.fit_tokenizer(autos(), tokenizer, model)
    assert caught.value.code == "model.load"
    assert {decision.field for decision in TASK.fit_tokenizer(autos(pooling="mean"), tokenizer, model)} == {
        "task.normalize",
        "task.max_length",
    }


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    tokenizer, model = folder_with(tmp_path)
    finish(section(pooling="max", normalize=True, max_length=32), model, tokenizer, tmp_path)
    found = {decision.field.removeprefix("task."): decision.value for decision in TASK.fit_tokenizer(autos(), tokenizer, model)}
    assert found == {"pooling": "max", "normalize": True, "max_length": 32}


def test_adapters_leave_out_the_pooler(tiny_bert: Path, tmp_path: Path) -> None:
    """Hidden states do not pass there: an adapter on it would have no gradient."""
    data = write_pairs(tmp_path / "rows.jsonl", "pairs", 20)
    prepared = prepare(spec_of(str(data), [f"model={tiny_bert}", "method=lora", "train.precision=fp32", "speed.off=all"]))
    trained = [name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name and "pooler" not in name for name in trained)


def test_linear_probe_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "rows.jsonl", "pairs", 20)
    with pytest.raises(InputError) as caught:
        prepare(spec_of(str(data), [f"model={tiny_bert}", "method=linear_probe"]))
    assert caught.value.code == "spec.conflict"
    assert "text_classification" in str(caught.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.models.load.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'tunesmith\[embedding\]'") as caught:
        decided("text pair")
    assert caught.value.code == "usage.missing_extra"
