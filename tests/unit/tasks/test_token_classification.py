"""Token classification: what rows say, what the model reads and learns, and what it answers."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml

import tiny_models
import tunesmith
from tiny_tags import sentences, write_conll
from tunesmith.cli import main
from tunesmith.errors import InputError
from tunesmith.tasks.token_classification import TOKEN_CLASSIFICATION as TASK
from tunesmith.tasks.token_classification.rows import text_words
from tunesmith.tasks.token_classification.section import TokenClassificationSpec

LABELS = ["O", "B-x", "I-x", "B-y", "I-y"]


def section(**settings: Any) -> TokenClassificationSpec:
    return TokenClassificationSpec(**{"scheme": "IOB2", "data_scheme": "IOB2", "labels": LABELS, **settings})


def read(row: dict[str, Any], **settings: Any) -> list[Any]:
    names = {role.name: name for role in TASK.roles for name in row if name in role.known_names}
    return list(TASK.read(section(**settings), names, row))


def facts(*rows: str, **more: Any) -> Any:
    counts = Counter(unit for row in rows for unit in TASK.units(row.split()))
    return SimpleNamespace(**{"label_counts": counts, "pretrained_labels": (), "root": Path(), **more})


def decided(*rows: str, pretrained: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    found = TASK.decide(TokenClassificationSpec(**settings), facts(*rows, pretrained_labels=pretrained))
    return {decision.field.removeprefix("task."): decision.value for decision in found}


# rows


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Ann's dog, 3.5 km!", "punctuation", ["Ann", "'", "s", "dog", ",", "3", ".", "5", "km", "!"]),
        ("Ann's dog,  \n3.5 km!", "whitespace", ["Ann's", "dog,", "3.5", "km!"]),
        ("a \U0001f600b\u0928\u093f", "characters", ["a", "\U0001f600", "b", "\u0928", "\u093f"]),
        ("\u0928\u093f x\u0301 \U0001f600", "punctuation", ["\u0928\u093f", "x\u0301", "\U0001f600"]),
        ("  ", "punctuation", []),
    ],
)
def test_words_of_a_text(text: str, words: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in text_words(text, words)] == expected


@pytest.mark.parametrize(
    "spans",
    [
        [{"start": 0, "end": 7, "label": "x"}, {"start": 17, "end": 18, "label": "y"}],
        [{"id": 4, "label": "y", "start_offset": 17, "end_offset": 18}, {"id": 3, "label": "x", "start_offset": 0, "end_offset": 7}],
        [[0, 7, "x"], [17, 18, "y"]],
    ],
)
@pytest.mark.parametrize("name", ["spans", "entities", "labels", "label"])
def test_spans_in_their_shapes_become_tags(spans: list[Any], name: str) -> None:
    [row] = read({"text": "Ann Lee met (in) \U0001f600.", name: spans})
    assert row["words"] == ["Ann", "Lee", "met", "(", "in", ")", "\U0001f600", "."]
    assert row["label"] == ["B-x", "I-x", "O", "O", "O", "O", "B-y", "O"]


def test_a_text_without_entities() -> None:
    assert read({"text": "no one", "spans": []}) == [{"words": ["no", "one"], "source_text": "no one", "label": ["O", "O"]}]


def test_neighbours_of_one_type_are_two_entities() -> None:
    [row] = read({"text": "Ann Lee", "spans": [[0, 3, "x"], [4, 7, "x"]]})
    assert row["label"] == ["B-x", "B-x"]


def test_tokens_in_one_cell_are_parted_by_blanks() -> None:
    assert read({"tokens": "in  Rome", "tags": "O B-x"}) == [{"words": ["in", "Rome"], "source_text": None, "label": ["O", "B-x"]}]


def test_ids_are_texts_until_they_are_named() -> None:
    assert read({"tokens": ["in", "Rome"], "ner_tags": [0, 3]})[0]["label"] == ["0", "3"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, [("data.tags", "2 tokens and 1 tags")]),
        ({"tokens": [], "tags": []}, [("data.empty_text", "an empty list")]),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, [("data.empty_text", "' '")]),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, [("data.column_type", "None")]),
        ({"tokens": ["a", "b"], "tags": ["O", ""]}, [("data.empty_label", "''")]),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, [("data.empty_label", "None")]),
        ({"tokens": ["a", "b"], "tags": ["O", 0.5]}, [("data.empty_label", "0.5")]),
        ({"tokens": {"a": 1}, "tags": None}, [("data.column_type", "{'a': 1}"), ("data.empty_label", "None")]),
        ({"text": "", "spans": []}, [("data.empty_text", "''")]),
        ({"text": "Ann sings", "spans": None}, [("data.empty_label", "None")]),
        ({"text": "Ann sings", "spans": "x"}, [("data.column_type", "'x'")]),
        ({"text": "Ann sings", "spans": [[0, 3]]}, [("data.span", "[0, 3]")]),
        ({"text": "Ann sings", "spans": [{"start": "0", "end": 3, "label": "x"}]}, [("data.span", "'start': '0'")]),
        ({"text": "Ann sings", "spans": [[0, 3, ""]]}, [("data.span", "[0, 3, '']")]),
        ({"text": "Ann sings", "spans": [[4, 10, "x"]]}, [("data.span", "from 4 to 10, in a text of 9 characters")]),
        ({"text": "Ann sings", "spans": [[3, 3, "x"], [5, 4, "x"], [-3, 3, "x"]]}, [("data.span", "from 3 to 3")] * 1 + [("data.span", "from 5 to 4"), ("data.span", "from -3 to 3")]),
        ({"text": "Ann sings", "spans": [[3, 4, "x"]]}, [("data.span", "' '")]),
        ({"text": "Ann sings", "spans": [[0, 4, "x"]]}, [("data.span", "'Ann '")]),
        ({"text": "Ann sings", "spans": [[1, 3, "x"]]}, [("data.span", "'nn'")]),
        ({"text": "Ann sings", "spans": [[0, 6, "x"]]}, [("data.span", "'Ann si'")]),
        ({"text": "Ann Lee sings", "spans": [[0, 7, "x"], [4, 13, "y"]]}, [("data.span", "x 'Ann Lee' and y 'Lee sings'")]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    found = read(row)
    assert [fault[0] for fault in found] == [code for code, _ in expected]
    for fault, (_, shown) in zip(found, expected, strict=True):
        assert shown in fault[2]
        assert fault[3]


def test_a_span_inside_a_word_says_which_word() -> None:
    [fault] = read({"text": "Ann sings", "spans": [[1, 3, "x"]]})
    assert fault[3].startswith("from 0 to 3 it covers whole words: 'Ann'; or task.words=characters")
    assert read({"text": "Ann sings", "spans": [[1, 3, "x"]]}, words="characters")[0]["label"][:3] == ["O", "B-x", "I-x"]


def test_columns_that_hold_nothing_to_learn() -> None:
    with pytest.raises(InputError) as caught:
        list(TASK.read(section(), {"tokens": "tokens", "text": "text"}, {"tokens": [], "text": ""}))
    assert caught.value.code == "data.ambiguous_columns"


def opened(*rows: dict[str, Any], format: str = "jsonl") -> Any:
    origin = SimpleNamespace(dialect=SimpleNamespace(format=format))
    return SimpleNamespace(origins={"train": [origin]}, sample=list(rows), names=list(dict.fromkeys(name for row in rows for name in row)))


@pytest.mark.parametrize(
    ("rows", "is_ours"),
    [
        ([{"tokens": ["a", "b"], "ner_tags": [0, 1]}], True),
        ([{"words": ["a"], "tags": ["O"]}], True),
        ([{"text": "a", "entities": []}, {"text": "a b", "entities": [[0, 1, "x"]]}], True),
        ([{"text": "a", "label": [[0, 1, "x"]]}], True),
        ([{"text": "a", "label": ["x", "y"]}], False),
        ([{"text": "a", "label": "x"}], False),
        ([{"tokens": ["a", "b"], "tags": ["x"]}], False),
        ([{"text": "a", "entities": []}], False),
    ],
)
def test_rows_are_recognised(rows: list[dict[str, Any]], is_ours: bool) -> None:
    assert (TASK.recognise(opened(*rows)) is not None) == is_ours


# tags


def test_what_is_decided_about_entities() -> None:
    found = decided("O B-b I-b O", "B-a O", "B-b B-a")
    assert found == {"data_scheme": "IOB2", "scheme": "IOB2", "labels": ["O", "B-a", "I-a", "B-b", "I-b"]}
    assert decided("O I-b I-b O", "I-a")["data_scheme"] == "IOB1"
    assert decided("O S-b B-b E-b", "S-a", scheme="BIOES")["labels"] == ["O", *(f"{p}-{t}" for t in "ab" for p in "BIES")]


def test_what_is_decided_about_plain_tags() -> None:
    assert decided("DET NOUN VERB", "NOUN") == {"data_scheme": "none", "scheme": "none", "labels": ["DET", "NOUN", "VERB"]}
    assert decided("O B-x", scheme="none") == {"data_scheme": "none", "labels": ["B-x", "O"]}


def test_ids_take_their_names() -> None:
    assert decided("0 1 2 0", "1", label_names=["O", "B-x", "I-x"])["labels"] == ["O", "B-x", "I-x"]
    assert decided("0 1", "1", label_names={"0": "VERB", "1": "NOUN", "2": "X"})["labels"] == ["VERB", "NOUN", "X"]
    with pytest.raises(InputError) as caught:
        decided("0 1 2 0")
    assert caught.value.code == "spec.undecided"
    assert decided("0 1 2 0", scheme="none")["labels"] == ["0", "1", "2"]


def test_the_order_of_a_checkpoint_is_kept() -> None:
    assert decided("O B-x", pretrained=("I-x", "B-x", "O"))["labels"] == ["I-x", "B-x", "O"]
    assert decided("O B-x", pretrained=("I-y", "B-x", "O"))["labels"] == ["O", "B-x", "I-x"]


def test_a_rare_type_that_looks_misspelt_is_none() -> None:
    rows = ["O B-person O"] * 20
    assert decided(*rows, "B-persn")["labels"] == ["O", "B-person", "I-person"]


@pytest.mark.parametrize(
    ("rows", "settings", "code"),
    [
        (["NOUN VERB"], {"scheme": "IOB2"}, "spec.conflict"),
        (["O B-x"], {"labels": ["B-x", "I-x"]}, "spec.conflict"),
        (["O O"], {"data_scheme": "IOB2"}, "data.one_class"),
        (["NOUN NOUN"], {}, "data.one_class"),
    ],
)
def test_what_cannot_be_decided(rows: list[str], settings: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        decided(*rows, **settings)
    assert caught.value.code == code


def lint(tags: str, **settings: Any) -> list[tuple[str, str, str]]:
    cell = tags.split()
    batch = {"label": [[], cell], "words": [[], [f"w{number}" for number in range(1, len(cell) + 1)]]}
    found = list(TASK.lint(section(**settings), batch))
    assert {row for row, _ in found} <= {1}
    return [(fault[0], fault[2], fault[3]) for _, fault in found]


def test_tags_that_break_their_scheme() -> None:
    assert lint("O B-x I-x O B-y") == []
    [(code, found, fix)] = lint("O I-x O B-y I-x")
    assert code == "data.tags"
    assert found == "word 2, 'w2': I-x after O: no B-x begins it; word 5, 'w5': I-x after B-y: no B-x begins it"
    assert "task.data_scheme" in fix
    assert lint("O B-x", data_scheme="BIOES")[0][1] == "word 3, 'the end': B-x is not ended: nothing follows"
    assert lint("O I-x", data_scheme="IOB1") == []


def test_unknown_tags_name_the_nearest() -> None:
    labels = ["O", "B-person", "I-person"]
    [(code, found, fix)] = lint("O B-persom", labels=labels)
    assert (code, found) == ("data.unknown_label", "'B-persom', of 'w2'")
    assert fix.startswith("did you mean B-person?")
    assert [code for code, *_ in lint("NOUN NONE", scheme="none", data_scheme="none", labels=["NOUN", "VERB"])] == ["data.unknown_label"]
    assert lint("1 7", label_names=["O", "B-x"])[-1][1] == "'7'"


def test_targets_are_in_the_scheme_of_the_model() -> None:
    labels = ["O", *(f"{prefix}-x" for prefix in "BIES")]
    assert TASK.target(section(labels=labels, scheme="BIOES"), ["B-x", "O", "B-x", "I-x", "I-x"]) == [4, 0, 1, 2, 3]
    assert TASK.target(section(label_names=["O", "B-x"]), ["1", "0"]) == [1, 0]


def test_strata_are_the_rarest_types_and_the_distribution_counts_entities() -> None:
    cells = [["B-x"], ["B-x", "B-y"], ["O"], ["B-x"]]
    assert TASK.stratify(section(), cells) == (["x", "y", "no entity", "x"], False)
    assert TASK.distribution is not None
    assert TASK.distribution(section(), facts("B-x I-x B-x", "O B-y").label_counts) == {"x": 2, "y": 1}


# what the model reads


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_models.wordpiece_tokenizer()


def encode(tokenizer: Any, rows: list[tuple[list[str], list[str]]], max_length: int = 64, **settings: Any) -> dict[str, list[Any]]:
    batch = {"words": [words for words, _ in rows], "label": [tags for _, tags in rows]}
    return TASK.encode(section(**settings), batch, tokenizer, max_length)


def test_the_first_token_of_each_word_is_trained(tokenizer: Any) -> None:
    columns = encode(tokenizer, [(["the", "qux", "town"], ["O", "B-x", "I-x"])])
    assert tokenizer.convert_ids_to_tokens(columns["input_ids"][0]) == ["[CLS]", "the", "q", "##u", "##x", "town", "[SEP]"]
    assert columns["word"] == [[-1, 0, 1, 1, 1, 2, -1]]
    assert columns["labels"] == [[-100, 0, 1, -100, -100, 2, -100]]
    assert columns["full_length"] == [7]


def test_all_tokens_can_be_trained_as_in_run_ner(tokenizer: Any) -> None:
    columns = encode(tokenizer, [(["the", "qux", "dux"], ["O", "B-x", "I-x"])], label_all_tokens=True)
    assert columns["labels"] == [[-100, 0, 1, 2, 2, 2, 2, 2, -100]]


def test_the_input_is_what_transformers_makes_of_words(tokenizer: Any) -> None:
    rows = sentences(20)
    settings = {"labels": ["O", "B-praise", "I-praise", "B-blame", "I-blame"]}
    theirs = tokenizer([words for words, _ in rows], is_split_into_words=True)
    columns = encode(tokenizer, rows, **settings)
    assert columns["input_ids"] == theirs["input_ids"]
    assert columns["word"] == [[-1 if word is None else word for word in theirs.word_ids(row)] for row in range(20)]


def test_a_long_row_becomes_windows_in_which_each_word_is_trained_once(tokenizer: Any) -> None:
    rows = [(["the", *["town", "qux"] * 20], ["O", *["O", "B-x"] * 20]), (["day"], ["B-y"])]
    columns = encode(tokenizer, rows, max_length=16, stride=6)
    assert columns["row"] == sorted(columns["row"])
    assert columns["row"].count(0) > 5
    assert columns["row"].count(1) == 1
    assert all(len(ids) <= 16 and ids[0] == 2 and ids[-1] == 3 for ids in columns["input_ids"])
    owned = [
        word for words, row in zip(columns["word"], columns["row"], strict=True) if row == 0 for word in dict.fromkeys(words) if word >= 0
    ]
    assert owned == list(range(41))
    trained = [label for labels, row in zip(columns["labels"], columns["row"], strict=True) if row == 0 for label in labels if label >= 0]
    assert trained == [0, *[0, 1] * 20]
    assert columns["full_length"] == [len(ids) for ids in columns["input_ids"]]


def test_a_word_longer_than_a_window_is_cut_and_said_to_be(tokenizer: Any) -> None:
    columns = encode(tokenizer, [(["the", "q" * 40, "day"], ["O", "B-x", "O"])], max_length=16, stride=4)
    assert [len(ids) for ids in columns["input_ids"]] == [3, 16, 3]
    assert columns["full_length"] == [3, 42, 3]
    assert [label for labels in columns["labels"] for label in labels if label >= 0] == [0, 1, 0]


def test_a_word_that_the_tokenizer_makes_nothing_of_is_its_unknown_token(tokenizer: Any) -> None:
    columns = encode(tokenizer, [(["the", "\u200d", "day"], ["O", "B-x", "O"])])
    assert tokenizer.convert_ids_to_tokens(columns["input_ids"][0]) == ["[CLS]", "the", "[UNK]", "day", "[SEP]"]
    assert columns["labels"] == [[-100, 0, 1, 0, -100]]
    assert TASK.source(section(), {"words": ["the", "\u200d"]}, tokenizer) is None
    assert TASK.source(section(), {"words": ["the"]}, tokenizer) == {"words": ["the"]}


def test_without_an_unknown_token_that_is_a_fault() -> None:
    from tokenizers import normalizers

    byte_level = tiny_models.bpe_tokenizer()
    byte_level.backend_tokenizer.normalizer = normalizers.Replace("z", "")
    columns = encode(byte_level, [(["day"], ["O"]), (["the", "zz", "day"], ["O", "O", "O"])])
    assert columns["fault"][0] is None
    assert columns["fault"][1][0] == "data.empty_text"
    assert columns["fault"][1][2] == "word 2: 'zz'"


def test_rows_without_tags_have_no_labels(tokenizer: Any) -> None:
    columns = TASK.encode(section(), {"words": [["the"]]}, tokenizer, 64)
    assert "labels" not in columns


def test_words_that_stand_alone_are_read_as_beginnings() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = tiny_models.bpe_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = SimpleNamespace(config=SimpleNamespace(pad_token_id=0))
    assert tokenizer.tokenize(["film", "day"], is_split_into_words=True)[0] != "Ġfilm"
    decisions = TASK.fit_tokenizer(section(), tokenizer, model)
    assert "a space before each word" in [decision.value for decision in decisions]
    assert tokenizer.tokenize(["film", "day"], is_split_into_words=True) == ["Ġfilm", "Ġday"]
    assert [decision.field for decision in TASK.fit_tokenizer(section(), tokenizer, model)] == []
    assert [decision.field for decision in TASK.fit_tokenizer(section(), tiny_models.wordpiece_tokenizer(), model)] == []


def test_the_loss_is_that_of_the_model(tmp_path: Path) -> None:
    folder = tiny_models.save_tiny("bert", tmp_path)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder, num_labels=5).eval()
    labels = torch.tensor([[-100, 1, 2, -100], [0, -100, -100, 4]])
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3], [5, 6, 7, 8]])}
    with torch.no_grad():
        logits = TASK.forward(section(), model, inputs, labels)
        ours = TASK.loss(section(), logits, labels, 0.0) / TASK.loss_weight(section(), labels.tolist())
        assert float(ours) == pytest.approx(float(model(**inputs, labels=labels).loss), rel=1e-6)


# what it answers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that has learnt something."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_models.save_tiny("bert", folder / "bert")
    data = write_conll(folder / "rows.conll", 240)
    settings = [f"model={model}", "train.epochs=20", "train.learning_rate=5e-3", "train.batch_size=8", "train.precision=fp32"]
    settings += ["train.save_steps=none", "train.load_best_model_at_end=false"]
    return tunesmith.train(str(data), settings, run=folder / "run", quiet=True)


def test_it_learns_and_is_proven(run: Any) -> None:
    assert run.spec.task.name == "token_classification"
    assert run.metrics["f1"] > 0.6
    proof = json.loads((run.path / "proof.json").read_text())
    assert proof["proven"]
    assert proof["same_tokens"]
    config = json.loads((run.path / "model/config.json").read_text())
    assert config["id2label"]["0"] == "O"
    assert len(config["id2label"]) == 5


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_predictions_are_those_of_the_pipeline(run: Any, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(words).replace(" again", "! again") for words, _ in sentences(30, seed=7)] + ["gooddull  awful, qux great"]
    task = run.spec.task.model_copy(update={"aggregation_strategy": strategy})
    monkeypatch.setitem(run.__dict__, "spec", run.spec.model_copy(update={"task": task}))
    pipeline = transformers.pipeline("token-classification", str(run.path / "model"), aggregation_strategy=strategy)
    found = run.predict(texts)
    num_entities = 0
    for text, row in zip(texts, found, strict=True):
        theirs = pipeline(text)
        assert row["text"] == text
        assert [(item["label"], item["start"], item["end"]) for item in row["entities"]] == [
            (item["entity_group"], item["start"], item["end"]) for item in theirs
        ]
        np.testing.assert_allclose([item["score"] for item in row["entities"]], [item["score"] for item in theirs], atol=1e-5)
        for item in row["entities"]:
            assert text[item["start"] : item["end"]] == item["text"]
        num_entities += len(theirs)
    assert num_entities > 20


def test_tokens_are_answered_with_places_in_both(run: Any) -> None:
    [row] = run.predict([["the", "film", "was", "lovely", "bright"]])
    assert row["text"] == "the film was lovely bright"
    assert row["tokens"] == ["the", "film", "was", "lovely", "bright"]
    for item in row["entities"]:
        assert " ".join(row["tokens"][item["first_word"] : item["last_word"] + 1]) == item["text"]
        assert row["text"][item["start"] : item["end"]] == item["text"]
    assert run.predict({"tokens": row["tokens"]}) == [row]


def test_a_long_document_is_answered_whole(run: Any) -> None:
    words = [word for sentence, _ in sentences(60, seed=3) for word in sentence]
    [whole] = run.predict([words])
    assert whole["tokens"] == words
    assert max(item["last_word"] for item in whole["entities"]) > len(words) - 20
    together = run.predict([words, ["the", "day"], words])
    assert [len(row["entities"]) for row in together] == [
        len(whole["entities"]),
        len(run.predict([["the", "day"]])[0]["entities"]),
        len(whole["entities"]),
    ]
    assert together[0] == whole


def test_windows_measure_the_same_rows(run: Any, tmp_path: Path) -> None:
    found = sentences(40, seed=5)
    rows = [found[start : start + 8] for start in range(0, 40, 8)]
    joined = [{"tokens": [word for words, _ in row for word in words], "tags": [tag for _, tags in row for tag in tags]} for row in rows]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in joined))
    long = run.evaluate(str(path), quiet=True)
    assert long["num_rows"] == 5
    assert long["num_words"] == sum(len(words) for words, _ in found)
    assert sum(scores["support"] for scores in long["per_class"].values()) == sum(tag.startswith("B-") for _, tags in found for tag in tags)
    assert long["metrics"]["f1"] > 0.5


@pytest.mark.parametrize("row", [3, {"tokens": "x", "text": 3, "tokens_": 1}, {"text": ""}, [], ["a", 3]])
def test_what_cannot_be_answered(run: Any, row: Any) -> None:
    if row == {"tokens": "x", "text": 3, "tokens_": 1}:
        assert run.predict([row])[0]["tokens"] == ["x"]
        return
    with pytest.raises(InputError):
        run.predict([row])


def test_the_command_line_shows_entities_and_writes_them(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    text = "the film was lovely bright in town"
    shown = printed("predict", str(run.path), "--text", text)
    [row] = run.predict([text])
    assert (
        shown.rstrip("\n") == ", ".join(f"{item['label']} {item['text']!r} {item['score']:.2f}" for item in row["entities"]) + f"\t{text}"
    )
    conll = write_conll(tmp_path / "new.conll", 5, seed=9)
    words = tmp_path / "words.conll"
    words.write_text("".join(line.split("\t")[0].strip() + "\n" for line in conll.read_text().splitlines()))
    for source in (conll, words):
        printed("predict", str(run.path), str(source), "--out", str(tmp_path / "out.jsonl"))
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert rows == run.predict([sentence for sentence, _ in sentences(5, seed=9)])
    printed("predict", str(run.path), str(words), "--out", str(tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [json.loads(line["entities"]) for line in table] == [row["entities"] for row in rows]
    lines = tmp_path / "lines.txt"
    lines.write_text(f"{text}\n{text} again\n")
    assert json.loads(printed("predict", str(run.path), str(lines), "--json"))["predictions"][0] == row
    assert "praise" in printed("evaluate", str(run.path), "--data", str(conll))


def test_check_shows_tags_and_windows(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_conll(tmp_path / "rows.conll", 30)
    arguments = ["check", str(data), f"model={run.path / 'model'}", "task.max_length=12", "task.stride=2", "--no-measure", "--no-cache"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "task.scheme = IOB2" in shown
    assert "in the order of the checkpoint" in shown
    assert "training labels: " in shown
    assert "rows are longer than task.max_length, and become several windows" in shown
    assert "/B-praise|" in shown or "/B-blame|" in shown


def test_init_writes_a_spec_for_tagged_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(write_conll(tmp_path / "rows.conll", 30))]) == 0
    spec = yaml.safe_load(capsys.readouterr().out)
    assert spec["task"] in ("token_classification", {"name": "token_classification"}) or spec["task"]["name"] == "token_classification"
    assert spec["data"]["columns"] == {"tokens": "token", "tags": "tag"}


def test_plain_tags_are_answered_word_by_word(tmp_path: Path) -> None:
    model = tiny_models.save_tiny("bert", tmp_path / "bert")
    rows = [(words, ["ADJ" if tag != "O" else "NOUN" for tag in tags]) for words, tags in sentences(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"words": words, "upos": tags}) + "\n" for words, tags in rows))
    settings = [f"model={model}", "train.epochs=8", "train.learning_rate=5e-3", "train.batch_size=4", "train.precision=fp32"]
    run = tunesmith.train(str(path), settings, run=tmp_path / "run", quiet=True)
    assert run.spec.task.scheme == "none"
    assert run.metrics["accuracy"] > 0.8
    assert set(run.metrics) == {"accuracy", "macro_f1", "loss"}
    [row] = run.predict([["the", "good", "film"]])
    assert row["tokens"] == ["the", "good", "film"]
    assert row["tags"][1] == "ADJ"
    assert all(0.3 < score <= 1 for score in row["tag_scores"])
