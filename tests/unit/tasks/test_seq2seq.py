"""Sources and targets: what rows hold, how they are encoded, written and scored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tunesmith
from tiny_rows import rows_of
from tiny_translations import (
    language_tokenizer,
    pairs,
    save_tiny_encoder_decoder,
    tiny_encoder_decoder,
    word_tokenizer,
    write_pairs,
    write_translations,
)
from tunesmith.data.collate import IGNORED, collate_rows
from tunesmith.engines.beams import write_targets
from tunesmith.errors import InputError
from tunesmith.models.token_loss import find_head, score_tokens
from tunesmith.models.writing import decoder_inputs, writing_config
from tunesmith.prepare import Prepared, prepare
from tunesmith.registry import TASKS
from tunesmith.spec import BeamSearchSpec
from tunesmith.strict import read_source
from tunesmith.tasks.seq2seq.languages import fit_languages, set_languages
from tunesmith.tasks.seq2seq.learning import encode, fit_tokenizer
from tunesmith.tasks.seq2seq.rows import decide_reading, find_language, read, read_input, recognise, remarks
from tunesmith.tasks.seq2seq.section import Seq2SeqSpec
from tunesmith.verbs.check import check, report_lines
from tunesmith.verbs.init import guess_task, spec_of

COLUMNS = {"source": "source", "target": "target"}
BY_LANGUAGE = {"translation": "translation"}


@dataclass
class Preview:
    """What recognise looks at."""

    sample: list[dict[str, Any]]
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = self.names or list(self.sample[0])


def test_sources_and_targets_are_read() -> None:
    section = Seq2SeqSpec()
    assert list(read(section, COLUMNS, {"source": "a day", "target": "day a"})) == [{"text": "a day", "label": ["day a"]}]
    assert list(read(section, COLUMNS, {"source": ["A day.", "Again."], "target": ["one", "two"]})) == [
        {"text": "A day. Again.", "label": ["one", "two"]}
    ]
    assert list(read_input(section, {"source": "source"}, {"source": "a day", "target": 3})) == [{"text": "a day"}]


def test_languages_are_read_by_name_whatever_their_order() -> None:
    section = Seq2SeqSpec(source_language="de", target_language="en")
    for cell in ({"en": "day", "de": "Tag"}, {"de": "Tag", "en": "day"}):
        assert list(read(section, BY_LANGUAGE, {"translation": cell})) == [{"text": "Tag", "label": ["day"]}]
    assert find_language("en_XX", ["de", "en"]) == "en"
    assert find_language("en", ["de_DE", "en_XX"]) == "en_XX"
    assert find_language("e", ["de_DE", "en_XX"]) is None


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        ({"source": "", "target": "a"}, "data.empty_text", "no source (column source)"),
        ({"source": "a", "target": None}, "data.empty_label", "no target (column target)"),
        ({"source": "a", "target": []}, "data.empty_label", "no target"),
        ({"source": "a", "target": ["b", " "]}, "data.empty_label", "target 2 of 2"),
        ({"source": 3, "target": "a"}, "data.column_type", "this is a number"),
        ({"source": "a", "target": {"x": 1}}, "data.column_type", "this is an object"),
        ({"source": ["a", 3], "target": "a"}, "data.column_type", "this is a list"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], code: str, said: str) -> None:
    (fault,) = read(Seq2SeqSpec(), COLUMNS, row)
    assert isinstance(fault, tuple)
    assert fault[0] == code
    assert said in fault[1]


def test_which_language_becomes_which() -> None:
    two = Preview([{"translation": {"fr": "jour", "en": "day"}}])
    found = {decision.field: decision.value for decision in decide_reading(Seq2SeqSpec(), two, BY_LANGUAGE)}
    assert found == {"task.source_language": "fr", "task.target_language": "en"}
    found = {decision.field: decision.value for decision in decide_reading(Seq2SeqSpec(source_language="en"), two, BY_LANGUAGE)}
    assert found == {"task.target_language": "fr"}
    three = Preview([{"translation": {"fr": "jour", "en": "day", "de": "Tag"}}])
    for section, code in (
        (Seq2SeqSpec(source_language="english"), "spec.value"),
        (Seq2SeqSpec(source_language="en", target_language="en"), "spec.conflict"),
        (Seq2SeqSpec(), "spec.undecided"),
    ):
        with pytest.raises(InputError) as caught:
            decide_reading(section, three, BY_LANGUAGE)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("sample", "seen"),
    [
        ([{"translation": {"en": "a day", "de": "ein Tag"}}], True),
        ([{"article": f"a long article {n}", "highlights": f"a short text {n}"} for n in range(30)], True),
        ([{"source": ["one.", "two."], "target": [f"a text {n}"], "id": n} for n in range(30)], True),
        ([{"source": str(n), "target": f"forty {n}"} for n in range(30)], True),
        ([{"text": f"a text {n}", "target": n % 2} for n in range(30)], False),  # classes
        ([{"text": f"a text {n}", "target": n / 7} for n in range(30)], False),  # numbers
        ([{"text": f"a text {n}", "target": "good" if n % 2 else "bad"} for n in range(60)], False),
        ([{"text": f"a text {n}", "label": f"a text {n}"} for n in range(30)], False),
    ],
)
def test_what_rows_look_like(sample: list[dict[str, Any]], seen: bool) -> None:
    assert (recognise(Preview(sample)) is not None) == seen


def test_the_task_is_seen_from_its_data(tmp_path: Path) -> None:
    for path in (write_pairs(tmp_path / "a.jsonl"), write_translations(tmp_path / "b.jsonl")):
        assert guess_task(read_source({"data": {"train": str(path)}})) == "seq2seq"


def test_what_is_odd_is_told_with_its_place() -> None:
    rows = rows_of([])
    section = Seq2SeqSpec()
    section._rows_have_languages = True
    import datasets

    rows.dataset = datasets.Dataset.from_dict(
        {
            "text": ["a day", "a day", "warm", "x"],
            "label": [["one"], ["two"], ["warm"], ["much more than nine times as long"]],
            "file": [0] * 4,
            "line": [1, 2, 3, 4],
        }
    )
    found = {decision.field: (decision.value, decision.because) for decision in remarks(section, rows)}
    assert found["rows of one source"][0] == 2
    assert found["targets that repeat their source"][0] == 1
    assert "rows.csv:3" in found["targets that repeat their source"][1]
    assert "rows.csv:4" in found["pairs of odd lengths"][1]
    with pytest.raises(InputError, match="several targets"):
        remarks(Seq2SeqSpec(targets="each"), rows)


def test_targets_are_as_long_as_they_are_and_cut_without_their_end() -> None:
    tokenizer = word_tokenizer()
    section = Seq2SeqSpec(prefix="the ", max_source_length=4, max_target_length=3)
    batch = {"text": ["film was good", "film"], "label": [["good was film again"], ["day", "in town"]]}
    found = encode(section, batch, tokenizer, 4)
    end = tokenizer.eos_token_id
    assert [len(ids) for ids in found["input_ids"]] == [4, 3]
    assert all(ids[-1] == end for ids in found["input_ids"])  # what a source ends with is read, whatever is cut
    assert found["full_length"] == [5, 3]
    assert found["labels"] == [tokenizer.convert_tokens_to_ids(["good", "was", "film"]), [*tokenizer.convert_tokens_to_ids(["day"]), end]]
    assert found["full_label_length"] == [5, 2]
    each = encode(section.model_copy(update={"targets": "each"}), batch, tokenizer, 4)
    assert each["row"] == [0, 1, 1]
    assert each["labels"][2] == [*tokenizer.convert_tokens_to_ids(["in", "town"]), end]


@pytest.mark.parametrize(("kind", "first"), [("mbart", "src"), ("mbart50", "code")])
def test_languages_of_a_tokenizer(kind: str, first: str) -> None:
    tokenizer, model = language_tokenizer(kind), tiny_encoder_decoder(kind, len(language_tokenizer(kind)))
    section = Seq2SeqSpec(source_language="de", target_language="en_XX", max_source_length=16, max_target_length=16)
    decisions = fit_tokenizer(section, tokenizer, model)
    assert "de_DE -> en_XX" in [decision.value for decision in decisions]
    german, english = tokenizer.convert_tokens_to_ids(["de_DE", "en_XX"])
    columns = encode(section, {"text": ["the film"], "label": [["film the"]]}, tokenizer, 16)
    assert german in columns["input_ids"][0]
    assert english in columns["labels"][0]
    assert model.generation_config.forced_bos_token_id == (english if kind == "mbart50" else None)
    assert model.generation_config.decoder_start_token_id == (tokenizer.eos_token_id if kind == "mbart50" else english)
    # writing begins as learning does
    labels = torch.tensor(columns["labels"])
    assert int(decoder_inputs(model, labels)[0, 0]) == model.generation_config.decoder_start_token_id
    with pytest.raises(InputError) as caught:
        set_languages(section.model_copy(update={"target_language": "eng"}), tokenizer)
    assert caught.value.code == "spec.value"
    assert "en_XX" in caught.value.problems[0].fix
    with pytest.raises(InputError) as caught:
        set_languages(Seq2SeqSpec(), tokenizer)
    assert caught.value.code == "spec.undecided"


def test_a_language_that_nothing_has_is_no_setting() -> None:
    with pytest.raises(InputError) as caught:
        fit_languages(Seq2SeqSpec(source_language="en"), word_tokenizer(), tiny_encoder_decoder("t5"))
    assert caught.value.code == "spec.no_effect"


def test_a_tokenizer_that_ends_nothing_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        fit_tokenizer(Seq2SeqSpec(), word_tokenizer("<s> $A"), tiny_encoder_decoder("t5"))
    assert caught.value.code == "model.tokenizer"


@pytest.mark.parametrize("kind", ["t5", "t5-gated", "bart", "mbart", "marian", "pegasus"])
def test_the_loss_is_the_models_own(kind: str) -> None:
    model = tiny_encoder_decoder(kind)
    head = find_head(model)
    assert head is not None
    assert (head.bias is not None) == (not kind.startswith("t5"))
    ids = torch.randint(5, 30, (3, 11), generator=torch.Generator().manual_seed(0))
    labels = ids[:, :7].flip(1).clone()
    labels[0, 4:] = IGNORED
    labels[:, -1] = 2
    labels[0, -1] = IGNORED
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = score_tokens(model, {**inputs, "decoder_input_ids": decoder_inputs(model, labels)}, labels, shifted=False)
    expected = model(**inputs, labels=labels).loss
    torch.testing.assert_close(found.loss / (labels != IGNORED).sum(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_answers_are_those_of_plain_generate(kind: str, beams: int) -> None:
    model, tokenizer = tiny_encoder_decoder(kind), word_tokenizer()
    settings = BeamSearchSpec(max_new_tokens=9, num_beams=beams, no_repeat_ngram_size=2)
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id
    sources = [list(tokenizer(source)["input_ids"]) for source, _ in pairs(7)]
    found = dict(write_targets(model, tokenizer, sources, settings, rows_per_batch=3 * beams))
    model.generation_config = writing_config(model, settings)
    for index, source in enumerate(sources):
        ids = model.generate(torch.tensor([source]))[0, 1:].tolist()
        ids = ids[: ids.index(2) + 1] if 2 in ids else ids
        assert found[index].text == tokenizer.decode(ids, skip_special_tokens=True)
        assert found[index].num_tokens == len(ids)
        assert found[index].finished == (2 in ids)
        assert 0 < found[index].score < 1
    assert sorted(found) == list(range(7))


def prepared(tmp_path: Path, kind: str, *overrides: str) -> Prepared:
    data = write_pairs(tmp_path / "rows.jsonl")
    model = save_tiny_encoder_decoder(kind, tmp_path / "model")
    settings = [f"model={model}", "train.precision=fp32", "data.validation=20%", "train.max_steps=2"]
    return prepare(spec_of(str(data), [*settings, *overrides]), use_cache=False)


def test_decisions_and_batches(tmp_path: Path) -> None:
    found = prepared(tmp_path, "bart")
    section: Any = found.spec.task
    assert (found.task.name, section.metrics, section.num_generated_in_training) == ("seq2seq", ["rouge"], 200)
    assert (section.max_source_length, section.max_target_length, section.generation.max_new_tokens) == (64, 64, 16)
    assert found.spec.train.metric_for_best_model == "rouge1"
    encoded = found.encoded["train"]
    assert (encoded.sizes == encoded.lengths + encoded.label_lengths).all()
    batch = collate_rows(encoded, [0, 1, 2], found.task, section, 1)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].shape == (3, 16)
    assert int((batch["labels"][0] != IGNORED).sum()) == encoded.label_lengths[0]
    assert found.model.generation_config.max_new_tokens == 16


def test_a_model_of_relative_positions_reads_more_than_is_usual(tmp_path: Path) -> None:
    found = prepared(tmp_path, "t5", "task.max_source_length=100")
    said = {decision.field: (decision.value, decision.because) for decision in found.resolved.decisions}
    assert said["task.max_source_length"][0] == 100
    assert "names 64 as its usual length" in said["task.max_source_length"][1]
    assert said["task.max_target_length"][0] == 64
    assert found.tokenizer.model_max_length == 100
    source = found.tokenizer("film " * 99)["input_ids"]
    (_, one), (_, cut) = write_targets(
        found.model, found.tokenizer, [source, source[:64]], BeamSearchSpec(max_new_tokens=4), rows_per_batch=1
    )
    assert one.score != cut.score


def test_words_that_can_never_be_written_are_told(tmp_path: Path) -> None:
    rows = [{"source": f"the film {word}", "target": f"{word} xyzzy film the"} for word in ("was", "again", "good", "long", "day")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_tiny_encoder_decoder("t5", tmp_path / "model")
    spec = spec_of(str(tmp_path / "rows.jsonl"), ["task=seq2seq", f"model={model}", "train.precision=fp32", "data.validation=none"])
    decisions = {decision.field: decision.value for decision in prepare(spec, use_cache=False).resolved.decisions}
    assert decisions["unknown tokens"] == "20.00%"


def test_check_shows_both_sides(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "rows.jsonl")
    model = save_tiny_encoder_decoder("t5", tmp_path / "model")
    settings = [f"model={model}", "task.max_target_length=5", "train.precision=fp32"]
    lines = report_lines(check(str(data), settings, measure=False, use_cache=False, quiet=True))
    assert any("targets: shortest 4" in line and "their end is not learnt" in line for line in lines)
    assert any(line.strip().startswith("target ") for line in lines)


def test_the_way_through(tmp_path: Path) -> None:
    """Trained by adapters, proven, evaluated with other settings and rows, asked: all on a model with languages."""
    data = write_translations(tmp_path / "rows.jsonl")
    model = save_tiny_encoder_decoder("mbart50", tmp_path / "model")
    settings = [
        f"model={model}", "method=lora", "train.precision=fp32", "data.validation=20%", "train.max_steps=3", "task.num_generated_in_training=2",
        "task.generation.max_new_tokens=6", "task.generation.num_beams=2",
    ]  # fmt: skip
    run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
    proof = run.directory.read_json("proof.json")
    assert proof["proven"]
    assert proof["same_tokens"]
    assert {"bleu", "chrf", "ended", "mean_tokens", "perplexity", "token_accuracy", "loss"} <= set(run.metrics)
    assert json.loads((run.directory.model / "generation_config.json").read_text())["num_beams"] == 2
    greedy = run.evaluate(overrides=["task.generation.num_beams=1", "task.num_generated=3", "task.metrics=[exact_match]"], quiet=True)
    assert greedy["num_generated"] == 3
    assert "exact_match" in greedy["metrics"]
    assert "bleu" not in greedy["metrics"]
    sides = [tmp_path / "new.en", tmp_path / "new.de"]
    for side, texts in zip(sides, zip(*pairs(3, seed=7), strict=True), strict=True):
        side.write_text("\n".join(texts) + "\n")
    assert run.evaluate([str(side) for side in sides], quiet=True)["num_rows"] == 3
    with pytest.raises(InputError, match="no setting of writing"):
        run.evaluate(overrides=["task.prefix=x"])
    (found,) = run.predict("the film was good")
    assert set(found) == {"source", "prediction", "num_tokens", "finished", "score"}
    (found_of_much,) = run.predict("film " * 500)
    assert found_of_much["cut_tokens"] == len(run.tokenizer("film " * 500)["input_ids"]) - run.spec.task.max_source_length
    rows = tmp_path / "new.txt"
    rows.write_text("the film was good\na day in town\n")
    assert [row["source"] for row in run.predict_file(str(rows), quiet=True)] == ["the film was good", "a day in town"]
    assert next(iter(run.predict_file(str(rows), quiet=True)))["prediction"] == found["prediction"]


@pytest.mark.slow
def test_adapters_are_merged(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "rows.jsonl")
    settings = [
        f"model={save_tiny_encoder_decoder('t5', tmp_path / 'model')}", "method=lora", "train.precision=fp32", "data.validation=20%",
        "train.max_steps=3", "task.num_generated_in_training=0", "task.generation.num_beams=2",
    ]  # fmt: skip
    run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
    assert run.metrics["perplexity"] > 1
    assert run.merge(tmp_path / "merged", quiet=True)["proven"]
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert merged.generation_config.num_beams == 2


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_new_models_learn_words_of_both_sides(family: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"source": f"one {n}", "target": f"zwei {n} drei"}) + "\n" for n in range(30)))
    spec = spec_of(str(rows), [f"model={{new: {family}, tokenizer: {{train: word}}}}", "train.precision=fp32", "train.max_steps=1"])
    found = prepare(spec, use_cache=False)
    assert {"one", "zwei", "drei"} <= set(found.tokenizer.get_vocab())
    assert found.model.config.decoder_start_token_id == (found.tokenizer.pad_token_id if family == "t5" else found.tokenizer.eos_token_id)
    assert found.tokenizer(text_target="zwei")["input_ids"][-1] == found.tokenizer.eos_token_id


def test_what_is_refused(tmp_path: Path) -> None:
    for overrides, code in (
        (["method=linear_probe"], "spec.conflict"),
        (["train.pack=true"], "spec.no_effect"),
        (["train.label_smoothing_factor=0.1"], "spec.no_effect"),
        (["task.max_target_length=65"], "spec.value"),
        (["task.generation.length_penalty=2.0"], "spec.value"),
    ):
        with pytest.raises(InputError) as caught:
            prepared(tmp_path, "bart", *overrides)
        assert caught.value.code == code, overrides
    assert TASKS.get("seq2seq").longest(Seq2SeqSpec(max_source_length=7)) == 7
