"""Metrics of vectors, against scipy, scikit-learn and the evaluator of sentence-transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from tunesmith.metrics.similarity import PairMeter, RankingMeter, average_precision


def examples(**columns: list[str]) -> Any:
    return SimpleNamespace(sources=lambda: columns)


def vectors(rows: int, texts: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, texts, 4, generator=torch.Generator().manual_seed(seed))


def test_correlations_equal_scipy() -> None:
    meter, found, scores = PairMeter(has_labels=False), vectors(50, 2), torch.arange(50) % 7 / 7
    meter.update(found[:20], scores[:20])
    meter.update(found[20:], scores[20:])
    result = meter.compute()
    cosines = torch.nn.functional.cosine_similarity(found[:, 0], found[:, 1]).numpy()
    assert set(result["metrics"]) == {"spearman", "pearson"}
    assert result["metrics"]["spearman"] == pytest.approx(scipy.stats.spearmanr(cosines, scores).statistic, abs=1e-6)
    assert result["metrics"]["pearson"] == pytest.approx(scipy.stats.pearsonr(cosines, scores).statistic, abs=1e-6)
    low, high = result["intervals"]["spearman"]
    assert low < result["metrics"]["spearman"] < high


@pytest.mark.parametrize("num_levels", [3, 1000])
def test_average_precision_equals_scikit_learn(num_levels: int) -> None:
    draw = np.random.default_rng(0)
    found, labels = draw.integers(num_levels, size=80) / num_levels, draw.integers(2, size=80)
    assert average_precision(found, labels) == pytest.approx(sklearn.metrics.average_precision_score(labels, found))
    assert average_precision(found, np.zeros(80)) == 0.0
    meter = PairMeter(has_labels=True)
    meter.update(vectors(80, 2), torch.from_numpy(labels))
    assert list(meter.compute(intervals=False)["metrics"]) == ["average_precision", "spearman", "pearson"]


def test_ranks_equal_the_evaluator_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rows, found = 40, vectors(40, 3)
    texts = {name: [f"{name} {row}" for row in range(rows)] for name in ("text", "pair", "negative")}
    meter = RankingMeter()
    for start in (0, 15):
        part = slice(start, 15 if start == 0 else rows)
        meter.update(found[part], torch.zeros(0), examples(**{name: column[part] for name, column in texts.items()}))
    result = meter.compute()
    queries = {f"q{row}": str(row) for row in range(rows)}
    corpus = {**{f"p{row}": str(row) for row in range(rows)}, **{f"n{row}": str(rows + row) for row in range(rows)}}
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, {f"q{row}": {f"p{row}"} for row in range(rows)}, mrr_at_k=[80], accuracy_at_k=[1, 5, 10],
        score_functions={"cosine": lambda a, b: torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T},
    )  # fmt: skip
    known = torch.cat([found[:, 1], found[:, 2]])

    class Model:
        similarity_fn_name = "cosine"
        similarity = None
        model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *arguments, **others: None)

        def encode(self, listed: list[str], *arguments: Any, **others: Any) -> torch.Tensor:
            return (found[:, 0] if listed[0] == "0" and len(listed) == rows else known)[[int(text) for text in listed]]

        encode_query = encode_document = encode

    expected = evaluator(Model())
    assert result["metrics"]["mrr"] == pytest.approx(expected["cosine_mrr@80"])
    for most in (1, 5, 10):
        assert result["metrics"][f"recall_at_{most}"] == pytest.approx(expected[f"cosine_accuracy@{most}"])
    cosines = torch.nn.functional.cosine_similarity(found[:, :1], found[:, 1:], dim=-1)
    assert result["metrics"]["triplet_accuracy"] == pytest.approx(float((cosines[:, 0] > cosines[:, 1]).float().mean()))
    assert result["num_candidates"] == 2 * rows
    assert all(low <= result["metrics"][name] <= high for name, (low, high) in result["intervals"].items())


def test_a_text_that_stands_twice_is_one_candidate() -> None:
    """Two questions of one passage, and two passages of one question: neither takes a rank from the other."""
    axes = torch.eye(4)
    meter = RankingMeter()
    found = torch.stack([torch.stack([axes[0], axes[0]]), torch.stack([axes[0], axes[0]]), torch.stack([axes[1], axes[2]])])
    meter.update(found, torch.zeros(3), examples(text=["a", "b", "c"], pair=["p", "p", "q"]))
    result = meter.compute(intervals=False)
    assert result["num_candidates"] == 2
    assert result["metrics"]["recall_at_1"] == pytest.approx(2 / 3)  # c is as far from its own as from the other
    meter.update(torch.stack([axes[1], axes[1]])[None], torch.zeros(1), examples(text=["c"], pair=["r"]))
    # c has two positives: its nearer one does not push the other down; the passage p, as far away as q, does
    assert meter.compute(intervals=False)["metrics"]["mrr"] == pytest.approx((1 + 1 + 1 / 2 + 1) / 4)


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    meter = RankingMeter()
    meter.update(torch.ones(8, 2, 4), torch.zeros(8), examples(text=list("abcdefgh"), pair=list("ijklmnop")))
    assert meter.compute(intervals=False)["metrics"]["recall_at_5"] == 0.0
