"""Plain scripts measure what tunesmith measures: of a model that is hardly trained, both report the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bench.plain import train_plain

from tiny_models import save_tiny, write_jsonl
from tiny_questions import questions, write_flat
from tiny_translations import save_tiny_encoder_decoder, write_pairs
from tunesmith.pipeline import build_job
from tunesmith.prepare import prepare
from tunesmith.runs.directory import RunDirectory
from tunesmith.verbs.init import spec_of

WORKS: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "question_answering": (
        "bert",
        lambda path: write_flat(path, questions(40, clauses=5)),
        ["task.max_length=20", "task.stride=4", "task.max_answer_length=4"],
    ),
    "seq2seq": ("t5", write_pairs, ["task.metrics=[bleu, rouge]", "task.generation.max_new_tokens=6", "task.generation.num_beams=2"]),
    "masked_lm": ("bert", write_jsonl, ["task.max_length=16"]),
}


@pytest.mark.parametrize("task", WORKS)
def test_a_plain_script_reports_what_tunesmith_does(task: str, tmp_path: Path) -> None:
    kind, write, settings = WORKS[task]
    data = write(tmp_path / "rows.jsonl")
    model = (save_tiny_encoder_decoder if kind == "t5" else save_tiny)(kind, tmp_path / "model")
    common = [
        f"model={model}",
        "method=full",
        "data.validation=30%",
        "train.max_steps=1",
        "train.learning_rate=1e-12",
        "train.precision=fp32",
    ]
    prepared = prepare(spec_of(str(data), [f"task={task}", *common, *settings]), use_cache=False)
    job = build_job(prepared, RunDirectory.create(tmp_path / "run", task))
    ours = {**job.written_metrics(), **job.scorer.evaluate(prepared.encoded["validation"], intervals=False)["metrics"]}
    plain = train_plain(prepared, str(tmp_path / "plain"), "group_by_length", [])
    names = [name for name in prepared.task.metrics(prepared.spec.task) if name in plain]
    assert {"question_answering": "HasAns_f1", "seq2seq": "rougeL", "masked_lm": "token_accuracy"}[task] in names
    assert {name: plain[name] for name in names} == pytest.approx({name: ours[name] for name in names}, rel=1e-4)
