"""Question answering: what rows say, what the model reads and learns, and what it answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
import tunesmith
from tiny_questions import questions, write_flat, write_squad
from tunesmith.cli import main
from tunesmith.errors import InputError
from tunesmith.prepare_data import prepare_data
from tunesmith.tasks.question_answering import QUESTION_ANSWERING as TASK
from tunesmith.tasks.question_answering.predictions import Window, best_spans, join, join_spans
from tunesmith.tasks.question_answering.rows import NO_ANSWER, references
from tunesmith.tasks.question_answering.section import QuestionAnsweringSpec
from tunesmith.verbs.init import spec_of

CONTEXT = "Das Café «Blau» liegt in Köln. Das Café ist blau."


def section(**settings: Any) -> QuestionAnsweringSpec:
    known = {"version_2_with_negative": True, "null_score_diff_threshold": 0.0, "max_length": 32, "max_answer_length": 8, "stride": 4}
    return QuestionAnsweringSpec(**{**known, **settings})


def read(row: dict[str, Any]) -> list[Any]:
    names = {role.name: name for role in TASK.roles for name in row if name in role.known_names}
    return list(TASK.read(section(), names, {"question": "Where?", "context": CONTEXT, **row} if "question" not in row else row))


def asked(**row: Any) -> dict[str, Any]:
    return {"question": "Where?", "context": CONTEXT, **row}


# rows


@pytest.mark.parametrize(
    "row",
    [
        {"answers": {"text": ["Köln"], "answer_start": [25]}},
        {"answers": {"text": "Köln", "answer_start": 25}},
        {"answers": [{"text": "Köln", "answer_start": 25}]},
        {"answers": [{"text": "Köln", "answer_start": 25}, {"answer_start": 25, "text": "Köln", "worker": 3}]},
        {"answers": ["Köln"], "answer_start": [25]},
        {"answer": "Köln", "answer_start": 25},
        {"answer": "Köln", "answer_start": "25", "is_impossible": "false"},
        {"answer": "Köln", "answer_start": 25.0, "is_impossible": 0.0},
        {"answers": json.dumps({"text": ["Köln"], "answer_start": [25]}), "is_impossible": None},
        {"answers": {"text": ["Köln"], "answer_start": [25]}, "is_impossible": False, "plausible_answers": []},
    ],
)
def test_answers_in_their_shapes(row: dict[str, Any]) -> None:
    assert read(asked(**row)) == [{"question": "Where?", "context": CONTEXT, "id": None, "label": ["25:Köln"]}]


@pytest.mark.parametrize(
    "row",
    [
        {"answers": {"text": [], "answer_start": []}},
        {"answers": []},
        {"answers": [], "is_impossible": True},
        {"answers": None, "is_impossible": 1},
        {"answer": "", "answer_start": "", "is_impossible": "TRUE"},
    ],
)
def test_questions_without_an_answer(row: dict[str, Any]) -> None:
    [found] = read(asked(**row))
    assert found["label"] == [NO_ANSWER]
    assert references(found["label"]) == []


def test_all_answers_are_kept_each_once_and_the_first_stays_first() -> None:
    [found] = read(asked(id=7, answers={"text": ["Köln", "in Köln", "Köln"], "answer_start": [25, 22, 25]}))
    assert found["label"] == ["25:Köln", "22:in Köln"]
    assert references(found["label"]) == ["Köln", "in Köln"]
    assert found["id"] == "7"


NOWHERE, ELSEWHERE, OUTSIDE = "stands nowhere", "does not stand where", "lies outside"


@pytest.mark.parametrize(
    ("row", "code", "problem", "found", "fix"),
    [
        ({"answer": "Bonn", "answer_start": 25}, "data.span", NOWHERE, "'Bonn'", "copy the answer to the letter"),
        ({"answer": "köln", "answer_start": 25}, "data.span", NOWHERE, "'köln'", "at 25 stands 'Köln'"),
        ({"answer": "in  Köln", "answer_start": 22}, "data.span", NOWHERE, "'in  Köln'", "at 22 stands 'in Köln'"),
        ({"answer": "Köln", "answer_start": 24}, "data.span", ELSEWHERE, "' Köl' stands", "answer_start: 25, where it stands"),
        ({"answer": "Köln", "answer_start": 26}, "data.span", ELSEWHERE, "'öln.'", "counted in characters from 1"),
        ({"answer": "Köln", "answer_start": 28}, "data.span", ELSEWHERE, "from 28", "counted in bytes"),
        ({"answer": "Café", "answer_start": 33}, "data.span", ELSEWHERE, "from 33", "answer_start: 35, where it stands (2 times in all)"),
        ({"answer": "Köln", "answer_start": 48}, "data.span", OUTSIDE, "in a context of 49 characters", "answer_start: 25"),
        ({"answer": "Köln", "answer_start": -1}, "data.span", OUTSIDE, "from -1", "answer_start: 25"),
        ({"answer": "Köln"}, "data.span", "does not say where it begins", "answer_start: None", "answer_start: 25"),
        ({"answer": "Köln", "answer_start": "x"}, "data.span", "no whole number", "answer_start: 'x'", "answer_start: 25"),
        ({"answer": "Köln", "answer_start": 25.5}, "data.span", "no whole number", "25.5", "answer_start: 25"),
        ({"answer": "Köln", "answer_start": True}, "data.span", "no whole number", "True", "answer_start: 25"),
        ({"answers": {"text": ["Köln", "in"], "answer_start": [25]}}, "data.answers", "one start each", "2 texts and 1 starts", "one answer_start"),
        ({"answers": {"answer_start": [25]}}, "data.column_type", "lack text", "'answer_start'", '{"text"'),
        ({"answers": [{"answer_start": 25}]}, "data.column_type", "has no text", "'answer_start'", '{"text"'),
        ({"answers": {"text": [3], "answer_start": [25]}}, "data.column_type", "an answer is a number", "3", '{"text"'),
        ({"answers": 3}, "data.column_type", "the answers are a number", "3", '{"text"'),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "data.empty_label", "an answer is empty", "' '", "an empty list"),
        ({"answers": None}, "data.empty_label", "has no answers", "None", "is_impossible: true"),
        ({"answers": [], "is_impossible": False}, "data.empty_label", "is_impossible is false", "an empty list", "is_impossible: true"),
        ({"answer": "Köln", "answer_start": 25, "is_impossible": True}, "data.answers", "there is an answer", "'Köln'", "keep one"),
        ({"answers": [], "is_impossible": "maybe"}, "data.column_type", "neither true nor false", "'maybe'", "correct the row"),
        ({"answers": [], "is_impossible": 2}, "data.column_type", "neither true nor false", "2", "correct the row"),
        ({"answers": [], "context": " "}, "data.empty_text", "the row has no context", "' '", "correct the row"),
        ({"answers": [], "context": ["a"]}, "data.column_type", "the context is a list", "['a']", "as a string"),
        ({"answers": [], "question": ""}, "data.empty_text", "the row has no question", "''", "correct the row"),
        ({"answers": [], "question": 5}, "data.column_type", "the question is a number", "5", "as a string"),
        ({"answers": [], "id": ["a"]}, "data.column_type", "the id is a list", "['a']", "a text or a number"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row(row: dict[str, Any], code: str, problem: str, found: str, fix: str) -> None:
    [fault] = read(asked(**row))
    assert fault[0] == code
    for shown, wanted in zip(fault[1:], (problem, found, fix), strict=True):
        assert wanted in shown


@pytest.mark.parametrize(
    ("context", "start", "counted"),
    [
        ("\U0001f600 in Rome", 6, "UTF-16 units"),
        ("  in Rome", 3, "first white space was taken away"),
        ("a\nb\nin Rome", 9, "line ends are two"),
        ("é in Rome", 6, "bytes"),
    ],
)
def test_how_an_offset_was_counted(context: str, start: int, counted: str) -> None:
    [fault] = read({"question": "Where?", "context": context, "answer": "Rome", "answer_start": start})
    assert fault[3].startswith(f"answer_start: {context.index('Rome')}, where it stands")
    assert counted in fault[3]


def test_every_fault_of_a_row_is_told_with_the_question() -> None:
    found = read(asked(id="q7", answers={"text": ["Bonn", "Köln"], "answer_start": [1, 2]}, is_impossible=True))
    assert [fault[0] for fault in found] == ["data.span", "data.span", "data.answers"]
    assert all("'Where?', id q7" in fault[2] for fault in found)


def test_input_needs_no_answers() -> None:
    names = {"question": "question", "context": "context"}
    assert list(TASK.read_input(section(), names, {"question": "q", "context": "c"})) == [{"question": "q", "context": "c", "id": None}]
    assert [fault[0] for fault in TASK.read_input(section(), names, {"question": "q"})] == ["data.empty_text"]


@pytest.mark.parametrize(
    ("row", "is_seen"),
    [
        ({"question": "q", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}, True),
        ({"Question": "q", "passage": "a b", "answer": "b", "answer_start": 2}, True),
        ({"question": "q", "context": "a b", "answers": []}, False),
        ({"question": "q", "context": "a b", "answer": "b"}, False),
        ({"question": "q", "answer": "b"}, False),
        ({"question": "q", "context": "a b", "label": "x"}, False),
    ],
)
def test_the_task_is_seen_where_answers_say_where_they_begin(row: dict[str, Any], is_seen: bool) -> None:
    assert (TASK.recognise(SimpleNamespace(names=list(row), sample=[row])) is not None) == is_seen


# decisions


def decided(num_with: int, num_without: int, **settings: Any) -> dict[str, Any]:
    counts = Counter({("answer",): num_with, (NO_ANSWER,): num_without})
    found = TASK.decide(QuestionAnsweringSpec(**settings), SimpleNamespace(label_counts=counts))
    return {decision.field.removeprefix("task."): decision.value for decision in found}


def test_what_the_training_rows_decide() -> None:
    assert decided(5, 1) == {"version_2_with_negative": True, "null_score_diff_threshold": "validation"}
    assert decided(5, 0) == {"version_2_with_negative": False, "null_score_diff_threshold": "none"}
    assert decided(5, 1, null_score_diff_threshold=1.5) == {"version_2_with_negative": True}
    assert decided(5, 1, version_2_with_negative=False) == {"null_score_diff_threshold": "none"}


@pytest.mark.parametrize(
    ("num_without", "settings", "code"),
    [
        (0, {"version_2_with_negative": True}, "spec.no_effect"),
        (0, {"null_score_diff_threshold": "validation"}, "spec.no_effect"),
        (0, {"null_score_diff_threshold": 0.0}, "spec.no_effect"),
        (3, {"null_score_diff_threshold": "none"}, "spec.conflict"),
    ],
)
def test_settings_without_effect(num_without: int, settings: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        decided(5, num_without, **settings)
    assert caught.value.code == code


def test_questions_without_an_answer_where_there_are_to_be_none() -> None:
    batch = {"question": ["a", "b"], "label": [["0:x"], [NO_ANSWER]]}
    assert [(index, fault[0]) for index, fault in TASK.lint(section(version_2_with_negative=False), batch)] == [(1, "data.answers")]
    assert list(TASK.lint(section(), batch)) == []


# what the model reads


def by_run_qa(tokenizer: Any, row: dict[str, Any], max_length: int, stride: int) -> list[tuple[list[int], list[int]]]:
    """(input_ids, [start, end]) of the windows of a row, as transformers' run_qa.py makes them."""
    tokens = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    found = []
    for window, ids in enumerate(tokens["input_ids"]):
        places = [index for index, part in enumerate(tokens.sequence_ids(window)) if part == 1]
        offsets, cls = tokens["offset_mapping"][window], ids.index(tokenizer.cls_token_id)
        label = [cls, cls]
        if row["answers"]["text"]:
            begin = row["answers"]["answer_start"][0]
            end = begin + len(row["answers"]["text"][0])
            if offsets[places[0]][0] <= begin and offsets[places[-1]][1] >= end:
                label = [max(p for p in places if offsets[p][0] <= begin), min(p for p in places if offsets[p][1] >= end)]
        found.append((ids, label))
    return found


@pytest.mark.parametrize(("max_length", "stride"), [(64, 4), (24, 6), (20, 0)])
def test_windows_and_labels_are_those_of_run_qa(max_length: int, stride: int) -> None:
    tokenizer, rows = tiny_models.wordpiece_tokenizer(), questions(40, clauses=6)
    batch = {
        "question": [row["question"] for row in rows],
        "context": [row["context"] for row in rows],
        "label": [read(row)[0]["label"] for row in rows],
    }
    found = TASK.encode(section(stride=stride), batch, tokenizer, max_length)
    wanted = [window for row in rows for window in by_run_qa(tokenizer, row, max_length, stride)]
    good = [index for index, fault in enumerate(found["fault"]) if fault is None]
    assert len(good) > 20
    assert [(list(found["input_ids"][index]), found["labels"][index]) for index in good] == [wanted[index] for index in good]
    assert found["row"] == sorted(found["row"])
    assert (len(found["row"]) > len(rows)) == (max_length < 64)
    for index in good:
        ids, first = found["input_ids"][index], found["first"][index]
        assert len(ids) == len(found["token_type_ids"][index]) <= max_length
        assert found["token_type_ids"][index] == [int(place >= first) for place in range(len(ids))]
        context = batch["context"][found["row"][index]]
        shown = [context[a:b] for a, b in zip(found["begin"][index], found["end"][index], strict=True)]
        assert [tokenizer.convert_ids_to_tokens(token).removeprefix("##") for token in ids[first : first + len(shown)]] == shown


def encoded(question: str, context: str, label: list[str], max_length: int = 32, **settings: Any) -> dict[str, list[Any]]:
    batch = {"question": [question], "context": [context], "label": [label]}
    return TASK.encode(section(**settings), batch, tiny_models.wordpiece_tokenizer(), max_length)


@pytest.mark.parametrize(
    ("question", "context", "label", "code"),
    [
        ("the film was " * 8, "the town was warm again " * 4, [NO_ANSWER], "data.too_long"),
        ("the film", "the town was warm again " * 8, ["4:" + ("the town was warm again " * 8)[4:150]], "data.too_long"),
        ("the film", "\u200b\u200b", [NO_ANSWER], "data.empty_text"),
        ("the film", "the \u200b town", ["4:\u200b"], "data.span"),
    ],
)
def test_rows_that_cannot_be_encoded(question: str, context: str, label: list[str], code: str) -> None:
    found = encoded(question, context, label)
    assert [fault[0] for fault in found["fault"]] == [code], "a row is told of once, whatever its windows"


def test_an_answer_over_the_edge_of_every_window_is_told_and_its_fix_works() -> None:
    context = "the town was warm again " * 8
    label = ["105:" + context[105:137]]
    [fault] = encoded("the film", context, label, stride=2)["fault"]
    assert fault[:3] == ("data.too_long", "no window holds the whole answer", "7 tokens")
    assert fault[3].startswith("raise task.stride (2 now, and at most half of the context in a window) to 7")
    assert not any(encoded("the film", context, label, stride=7)["fault"])


def test_a_character_of_several_tokens_is_one_answer() -> None:
    context = "good \U0001f600 day"
    tokenizer = tiny_models.bpe_tokenizer()
    batch = {"question": ["the film"], "context": [context], "label": [["5:\U0001f600"]]}
    found = TASK.encode(section(), batch, tokenizer, 64)
    [[start, end]], [fault] = found["labels"], found["fault"]
    assert fault is None
    assert end > start
    assert "\U0001f600" in tokenizer.decode(found["input_ids"][0][start : end + 1])


def test_the_longest_answer_is_that_of_the_training_rows() -> None:
    def decided(*texts: str) -> Any:
        rows = SimpleNamespace(batches=lambda: [(0, {"label": [[f"0:{text}"] for text in texts] + [[NO_ANSWER]]})])
        return TASK.decide_tokens(section(max_answer_length="auto"), rows, tiny_models.wordpiece_tokenizer())[0].value

    assert decided("good", "a long day") == 30
    assert decided("good", "a long day " * 12) == 36
    assert TASK.decide_tokens(section(max_answer_length=3), None, None) == []


# what it answers


def test_the_best_spans_are_those_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 14, 2, generator=generator)
    first, count = torch.tensor([3, 2, 5, 4, 13]), torch.tensor([10, 12, 1, 5, 1])
    scores, begins, ends, log_sums = best_spans(logits, first, count, 4, 6)
    for row in range(5):
        inside = range(int(first[row]), int(first[row] + count[row]))
        pairs = [(float(logits[row, a, 0] + logits[row, b, 1]), a, b) for a in inside for b in inside if a <= b < a + 4]
        wanted = sorted(pairs, reverse=True)[:6]
        kept = int((scores[row] > -torch.inf).sum())
        assert kept == len(wanted)
        assert list(zip(begins[row, :kept].tolist(), ends[row, :kept].tolist(), strict=True)) == [(a, b) for _, a, b in wanted]
        assert scores[row, :kept].tolist() == pytest.approx([score for score, _, _ in wanted])
        assert float(log_sums[row]) == pytest.approx(float(np.logaddexp.reduce([score for score, _, _ in pairs])), rel=1e-5)


def windows(threshold: float | None) -> list[Window]:
    return [
        Window([(2.0, 0, 4), (1.0, 3, 8)], 3.0, 2.5, threshold),
        Window([(1.5, 4, 8), (0.5, 0, 3)], 2.0, 1.0, threshold),
    ]


def test_windows_are_joined_without_white_space_each_span_once() -> None:
    assert join_spans(windows(None), "the town ") == [(2.0, 0, 3), (1.5, 4, 8)]
    assert join_spans([Window([(1.0, 3, 4)], 1.0, 0.0, None)], "the town") == []


def test_an_answer_and_its_share_of_all_spans() -> None:
    row = {"question": "where", "context": "the town ", "id": "q"}
    found = join(section(n_best=5), windows(None), row)
    total = np.exp(3.0) + np.exp(2.0)
    assert {name: found[name] for name in ("id", "question", "answer", "start", "end")} == {
        "id": "q", "question": "where", "answer": "the", "start": 0, "end": 3,
    }  # fmt: skip
    assert found["score"] == pytest.approx(np.exp(2.0) / total)
    assert [other["answer"] for other in found["n_best"]] == ["the", "town"]
    assert "no_answer_score" not in found


def test_a_question_is_left_without_an_answer_above_the_threshold() -> None:
    """The score of no answer is the least of all windows, 1.0; that of the best span is 2.0."""
    row = {"question": "where", "context": "the town "}
    total = np.exp(3.0) + np.exp(2.0) + np.exp(1.0)
    given, withheld = join(section(), windows(-1.0), row), join(section(), windows(-1.1), row)
    assert given["answer"] == "the"
    assert (withheld["answer"], withheld["start"], withheld["end"]) == ("", None, None)
    for found in (given, withheld):
        assert found["no_answer_score"] == pytest.approx(np.exp(1.0) / total)
        assert "id" not in found
    assert given["score"] == pytest.approx(np.exp(2.0) / total)
    assert withheld["score"] == withheld["no_answer_score"]


# whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data") / "things.json", questions(60, clauses=5))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tunesmith.Run:
    """A model that has learnt something, with windows, on a share whose contexts no training row has."""
    folder = tmp_path_factory.mktemp("run")
    settings = [
        f"model={tiny_models.save_tiny('bert', folder / 'bert')}", "data.validation=30%", "task.max_length=32", "task.stride=8", "task.n_best=3",
        "task.max_answer_length=4", "train.max_steps=30", "train.learning_rate=1e-2", "train.precision=fp32", "train.eval_steps=none",
        "train.load_best_model_at_end=false", "train.save_steps=none",
    ]  # fmt: skip
    return tunesmith.train(str(data), settings, run=folder / "run", quiet=True)


def test_a_run_tunes_its_threshold_and_is_proven(run: tunesmith.Run) -> None:
    found = run.directory.read_json("eval/validation.json")
    assert run.directory.read_json("model/thresholds.json") == {"thresholds": found["thresholds"]}
    assert found["num_rows"] == found["num_with_answer"] + found["num_without_answer"]
    assert found["num_without_answer"] > 0
    assert {"f1", "exact_match", "HasAns_f1", "NoAns_exact_match", "f1_at_0", "loss"} <= found["metrics"].keys()
    assert found["metrics"]["f1"] >= found["metrics"]["f1_at_0"]
    proof = run.directory.read_json("proof.json")
    assert proof["proven"]
    assert proof["largest_logit_difference"] < 1e-5
    assert run.evaluate(quiet=True)["metrics"] == found["metrics"]


def test_contexts_of_the_training_rows_are_told_in_a_file_for_validation(tmp_path: Path) -> None:
    rows = questions(10)
    files = [write_flat(tmp_path / "train.jsonl", rows[:6:2]), write_flat(tmp_path / "held.jsonl", [*rows[8:], *rows[1:6:2]])]
    data = prepare_data(spec_of(str(files[0]), [f"data.validation={files[1]}"]))
    [found] = [decision for decision in data.resolved.decisions if "is trained on" in decision.field]
    assert (found.field, found.value) == ("validation rows whose context is trained on", "3 of 5")
    assert "held.jsonl:3" in found.because


def test_no_context_stands_on_both_sides(run: tunesmith.Run) -> None:
    rows = prepare_data(run.spec).rows
    train, validation = (set(rows[split].dataset["context"]) for split in ("train", "validation"))
    assert not train & validation
    assert 0.2 < len(rows["validation"]) / 60 < 0.4


def test_predictions_are_what_was_evaluated(run: tunesmith.Run) -> None:
    rows = run.held_rows().dataset.to_list()
    found = run.predict([{"question": row["question"], "context": row["context"]} for row in rows])
    right = [
        max((float(answer["answer"] == text) for text in references(row["label"])), default=float(answer["answer"] == ""))
        for answer, row in zip(found, rows, strict=True)
    ]
    assert 100 * np.mean(right) == pytest.approx(run.metrics["exact_match"])
    for answer, row in zip(found, rows, strict=True):
        assert answer["answer"] == "" or row["context"][answer["start"] : answer["end"]] == answer["answer"]
        assert 1 <= len(answer["n_best"]) <= 3
        assert 0 < sum(other["score"] for other in answer["n_best"]) <= 1
    assert len({answer["answer"] for answer in found}) > 3


def test_the_code_of_the_card_answers_the_same(run: tunesmith.Run) -> None:
    code = (run.directory.model / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(run.directory.model))), names)
    rows = [(row["question"], row["context"]) for row in questions(30, seed=1, clauses=6)]
    theirs = [names["answer"](*row) for row in rows]
    assert theirs == [(found["answer"], found["start"], found["end"]) for found in run.predict(rows)]
    assert len(set(theirs)) > 5


def test_predict_from_everywhere(
    run: tunesmith.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": row["question"], "context": row["context"]} for row in questions(4, seed=2)]
    wanted = run.predict(rows)
    assert main(["predict", str(run.path), str(write_flat(tmp_path / "rows.jsonl", rows)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == wanted
    with (tmp_path / "rows.jsonl").open(encoding="utf-8") as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["predict", str(run.path), "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == wanted
    (tmp_path / "context.txt").write_text(rows[0]["context"], encoding="utf-8")
    both = ["--question", rows[0]["question"], "--question", rows[1]["question"]]
    assert rows[0]["context"] == rows[1]["context"]
    for context in (rows[0]["context"], str(tmp_path / "context.txt")):
        assert main(["predict", str(run.path), *both, "--context", context, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["predictions"] == wanted[:2]
    assert main(["predict", str(run.path), str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "found.csv")]) == 0
    assert (tmp_path / "found.csv").read_text(encoding="utf-8").startswith("question,answer,start,end,score,no_answer_score,n_best\n")
    capsys.readouterr()
    assert main(["predict", str(run.path), *both[:2], "--context", rows[0]["context"]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{wanted[0]['answer'] or 'no answer'}\t{wanted[0]['score']:.4f}\t{rows[0]['question']}"
    assert len(shown) == 1 + len(wanted[0]["n_best"])


@pytest.mark.parametrize(
    ("arguments", "code", "where"),
    [
        (["--question", "a", "--question", "b", "--context", "c", "--context", "d", "--context", "e"], "usage.argument", ""),
        (["--question", "the film"], "data.empty_text", "row:1"),
        (["-"], "data.unreadable_line", "-:2"),
    ],
)
def test_what_cannot_be_predicted(
    arguments: list[str], code: str, where: str, run: tunesmith.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    (tmp_path / "lines").write_text('{"question": "a", "context": "b"}\nthe film\n')
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["predict", str(run.path), *arguments, "--json"]) == 2
    [problem] = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert (problem["code"], problem["where"]) == (code, where)
    assert problem["fix"] or problem["found"]


def test_evaluate_other_rows_at_the_tuned_threshold(run: tunesmith.Run, tmp_path: Path) -> None:
    held = write_flat(tmp_path / "held.jsonl", questions(12, seed=3))
    found = run.evaluate(str(held), quiet=True)
    assert found["null_score_diff_threshold"] == run.directory.read_json("model/thresholds.json")["thresholds"][0]
    assert "thresholds" not in found
    assert found["num_rows"] == 12


def test_check_marks_the_answers(run: tunesmith.Run, capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.verbs.check import check, report_lines

    report = check(run.spec, measure=False, use_cache=False, quiet=True)
    assert set(report["data"]["labels"]) == {"answer", NO_ANSWER}
    assert report["lengths"]["train"]["windowed"] > 0
    rows = {row["place"].partition(", ")[0]: row for row in report["rows"]}
    for row in rows.values():
        marked = [token for token, trained in zip(row["tokens"], row["trained"], strict=True) if trained]
        assert marked == ["[CLS]"] or marked[1] == "and"
    assert any("«" in line for line in report_lines(report))
