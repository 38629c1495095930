"""Embedding: the trajectory is that of SentenceTransformerTrainer, whatever cuts the steps; a cache of gradients changes nothing; resumed
equals straight; what is saved is what sentence-transformers and transformers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import tunesmith
from resumption import resumed_equals_straight
from tiny_models import save_tiny
from tiny_pairs import rows, write_pairs
from trajectories import InPlannedOrder, Losses, Trajectory, assert_same_trajectory, by_tunesmith
from tunesmith.data.plan import BatchPlan
from tunesmith.prepare import Prepared, prepare
from tunesmith.verbs.init import spec_of

NUM_STEPS = 8
NUM_ROWS = 64
SETTINGS = [
    "task.name=embedding", "data.validation=none", "train.precision=fp32", f"train.max_steps={NUM_STEPS}", "train.learning_rate=5e-3",
    "train.weight_decay=0.01", "train.batch_size=16",
]  # fmt: skip
CUT = "train.max_tokens_per_micro_batch=128"


def _prepare(model: Path, tmp_path: Path, kind: str, *overrides: str) -> Prepared:
    data = write_pairs(tmp_path / f"{kind}.jsonl", kind, NUM_ROWS)
    return prepare(spec_of(str(data), [f"model={model}", *SETTINGS, *overrides]))


class _Planned(SentenceTransformerTrainer):
    """Their trainer as anyone would use it; only the order of rows is given."""

    plan: BatchPlan

    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **others: Any) -> Any:
        return DefaultBatchSampler(InPlannedOrder(self.plan), batch_size=batch_size, drop_last=False)


def _theirs(model: Path, prepared: Prepared, kind: str, make_loss: Any, folder: Path) -> Trajectory:
    train, kept = prepared.spec.train, Losses()
    body = Transformer(str(model))
    plain = SentenceTransformer(modules=[body, Pooling(16, "mean")], device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder), max_steps=NUM_STEPS, per_device_train_batch_size=train.batch_size, learning_rate=float(train.learning_rate),
        weight_decay=train.weight_decay, seed=train.seed, logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
        report_to="none",
    )  # fmt: skip
    data = rows(kind, NUM_ROWS)
    if "score" in data[0]:
        data = [{**row, "score": row["score"] / 5} for row in data]
    plain_trainer = _Planned(plain, arguments, train_dataset=datasets.Dataset.from_list(data), loss=make_loss(plain), callbacks=[kept])
    plain_trainer.plan = prepared.plan
    plain_trainer.train()
    return kept.values, {name: tensor.clone() for name, tensor in body.model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "overrides", "make_loss"),
    [
        ("triplets", [], losses.MultipleNegativesRankingLoss),
        ("scored_pairs", ["task.gradient_cache=true"], losses.CoSENTLoss),
        pytest.param("scored_pairs", ["task.loss=cosine_similarity", "task.score_range=[0, 5]"], losses.CosineSimilarityLoss, marks=pytest.mark.slow),
        pytest.param(
            "pairs", ["task.matryoshka_dimensions=[16,8]"],
            lambda model: losses.MatryoshkaLoss(model, losses.MultipleNegativesRankingLoss(model), [16, 8]), marks=pytest.mark.slow,
        ),
    ],
    ids=["ranking-one-graph", "cosent-cached", "cosine-in-parts", "matryoshka"],
)  # fmt: skip
def test_the_trajectory_is_that_of_sentence_transformers(
    still_bert: Path, tmp_path: Path, kind: str, overrides: list[str], make_loss: Any
) -> None:
    prepared = _prepare(still_bert, tmp_path, kind, CUT, *overrides)
    assert max(len(step) for step in prepared.plan.batches(0)) > 2, "steps should be cut for this to say anything"
    ours = by_tunesmith(prepared, tmp_path / "ours")
    assert_same_trajectory(ours, _theirs(still_bert, prepared, kind, make_loss, tmp_path / "theirs"), NUM_STEPS)


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_cache_of_gradients_draws_dropout_as_one_graph_does(tiny_bert: Path, tmp_path: Path, method: str) -> None:
    settings = (f"method={method}", CUT)
    graph = by_tunesmith(_prepare(tiny_bert, tmp_path, "pairs", *settings), tmp_path / "graph")
    cached = by_tunesmith(_prepare(tiny_bert, tmp_path, "pairs", *settings, "task.gradient_cache=true"), tmp_path / "cached")
    assert_same_trajectory(cached, graph, NUM_STEPS)


@pytest.mark.slow
def test_accelerations_change_nothing(still_bert: Path, tmp_path: Path) -> None:
    fast = _prepare(still_bert, tmp_path, "triplets")
    assert {"linear", "norm", "end_to_end", "optimizer"} <= set(fast.accelerations)
    plain = _prepare(still_bert, tmp_path, "triplets", "speed.off=all")
    assert plain.accelerations == []
    assert_same_trajectory(by_tunesmith(fast, tmp_path / "fast"), by_tunesmith(plain, tmp_path / "plain"), NUM_STEPS)


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(["method=full"], marks=pytest.mark.slow), ["method=lora", "task.gradient_cache=true", CUT]],
    ids=["full", "lora-cached"],
)
def test_resumed_equals_straight(tiny_bert: Path, tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_pairs(tmp_path / "rows.jsonl", "pairs", 60)
    settings = [
        f"model={tiny_bert}", "data.validation=20%", "train.precision=fp32", "train.epochs=2", "train.batch_size=16", "train.learning_rate=5e-3",
        "train.save_steps=2", "train.eval_steps=2", "train.logging_steps=1", *overrides,
    ]  # fmt: skip
    resumed_equals_straight(data, settings, tmp_path, monkeypatch, crash_after=5)


@pytest.mark.parametrize(
    "settings",
    [
        ["method=lora", "task.normalize=true"],
        pytest.param(["method=freeze", "task.pooling=cls", "task.max_length=8"], marks=pytest.mark.slow),
    ],
    ids=["lora", "freeze"],
)
def test_what_is_saved_is_loaded_elsewhere(tiny_bert: Path, tmp_path: Path, settings: list[str]) -> None:
    data = write_pairs(tmp_path / "rows.jsonl", "triplets", 60)
    common = [f"model={tiny_bert}", "train.precision=fp32", "train.max_steps=3", "train.learning_rate=5e-3", *settings]
    run = tunesmith.train(str(data), common, run=tmp_path / "run", quiet=True)
    proof = json.loads((run.path / "proof.json").read_text())
    assert proof["proven"]
    assert proof["largest_logit_difference"] < 1e-5
    assert set(run.metrics) == {"mrr", "recall_at_1", "recall_at_5", "recall_at_10", "triplet_accuracy", "loss"}
    texts = [row["anchor"] for row in rows("triplets", 9)]
    vectors = np.asarray([row["embedding"] for row in run.predict(texts)])
    plain = SentenceTransformer(str(run.path / "model"), device="cpu")
    np.testing.assert_allclose(vectors, plain.encode(texts), atol=1e-5)
    body, tokenizer = (kind.from_pretrained(run.path / "model") for kind in (transformers.AutoModel, transformers.AutoTokenizer))
    alone = tokenizer(texts[:1], truncation=True, max_length=run.spec.task.max_length, return_tensors="pt")
    hidden = body.eval()(**alone).last_hidden_state[0]
    pooled = hidden[0] if "task.pooling=cls" in settings else torch.nn.functional.normalize(hidden.mean(0), dim=0)
    np.testing.assert_allclose(vectors[0], pooled.detach().numpy(), atol=1e-5)
    [pair] = run.predict([(texts[0], texts[1])])
    lengths = [len(ids) for ids in tokenizer(texts[:2])["input_ids"]]
    assert pair.pop("cut_tokens", 0) == sum(max(0, length - run.spec.task.max_length) for length in lengths)
    assert pair == {"text": texts[0], "pair": texts[1], "score": pytest.approx(float(plain.similarity(*plain.encode(texts[:2]))), abs=1e-5)}
    with pytest.raises(tunesmith.InputError, match="different things"):
        run.predict([texts[0], (texts[0], texts[1])])
    with pytest.raises(tunesmith.InputError, match="text and pair"):
        run.predict([tuple(texts[:3])])
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    by_file = list(run.predict_file(str(tmp_path / "texts.jsonl"), quiet=True))
    np.testing.assert_allclose([row["embedding"] for row in by_file], vectors, atol=1e-6)
    compared = run.evaluate(compare=True, quiet=True)
    assert compared["base"]["metrics"].keys() == compared["metrics"].keys()
    assert compared["base"]["metrics"] != compared["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "auto_model"), [("bert", "AutoModel"), ("llama", "AutoModelForCausalLM")])
def test_adapters_are_merged_into_one_model(tmp_path: Path, kind: str, auto_model: str) -> None:
    model = save_tiny(kind, tmp_path / kind, auto_model)
    data = write_pairs(tmp_path / "rows.jsonl", "pairs", 40)
    settings = [f"model={model}", "method=lora", "train.precision=fp32", "train.max_steps=2", "train.learning_rate=5e-3"]
    run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    assert run.spec.task.pooling == ("lasttoken" if kind == "llama" else "mean")
    proof = run.merge(tmp_path / "merged", quiet=True)
    assert proof["proven"]
    text = rows("pairs", 1)[0]["anchor"]
    [row] = run.predict([text])
    plain = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    np.testing.assert_allclose(row["embedding"], plain.encode(text), atol=1e-4)
