"""A logistic regression on the features of a frozen sentence-transformers model: by hand, or by SetFit's second phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.peers.given import Given, read_request
from bench.peers.record import Record

Fit = Callable[[list[str], list[str]], Any]
Predict = Callable[[list[str]], Any]


def by_hand(given: Given) -> tuple[Fit, Predict]:
    """encode() and scikit-learn."""
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    settings: dict[str, Any] = {"model_kwargs": {"dtype": torch.bfloat16}} if given.is_tuned_to_bf16 else {}
    encoder = SentenceTransformer(given.sentence_transformer, device="cpu", **settings)
    head = LogisticRegression(max_iter=1000)
    return lambda texts, labels: head.fit(encoder.encode(texts), labels), lambda texts: head.predict(encoder.encode(texts))


def by_setfit(given: Given) -> tuple[Fit, Predict]:
    """`Trainer.train_classifier`; SetFit's first phase, on pairs of sentences, is meant for a few rows a class."""
    from setfit import SetFitModel, Trainer

    model = SetFitModel.from_pretrained(given.sentence_transformer, device="cpu")
    return Trainer(model=model).train_classifier, model.predict


def main() -> None:
    """Fits as asked."""
    given, record = read_request(), Record()
    rows, held = given.rows("rows_texts"), given.rows("held_texts")
    fit, predict = (by_setfit if given.variant == "setfit" else by_hand)(given)
    record.start()
    fit([row["text"] for row in rows], [row["label"] for row in rows])
    record.step_ends = [time.time()]
    found = np.asarray(predict([row["text"] for row in held]))
    record.metrics = {"accuracy": float(np.mean(found == np.asarray([row["label"] for row in held])))}
    record.notes.append("features are mean-pooled")
    record.write(given.out)


if __name__ == "__main__":
    main()
