"""Whatever a spec or a data file holds, the answer is rows to train on or an error with a code."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import CODES, TunesmithError
from tunesmith.prepare_data import prepare_data
from tunesmith.strict import load_spec

QUICK = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY_SPECS = settings(QUICK, max_examples=17_500)
MANY_FILES = settings(QUICK, max_examples=1_500)

SPEC = """task: {name: text_classification, labels: [good, bad], problem_type: auto}
model: minilm
data:
  train: rows.csv
  validation: 20%
  columns: {text: review, label: stars}
  format: csv
  delimiter: ","
method: {name: lora, rank: 8, target_modules: auto}
train:
  epochs: 3
  learning_rate: 2e-5
  batch_size: 16
  precision: fp32
  eval_steps: epoch
  extra: {report_to: none}
speed: {off: [dropout]}
"""
ODD = ["auto", "none", "null", "~", "{}", "[]", "&a", "*a", "!!python/object:os.system", "---", ": :", "1e999", "-1", "0x1f", ".nan", "<<:"]
ODDER = ["|", ">", "%YAML 9.9", "task:", "method: qlora", "new: bert", "yes", "'", '"', "\t", "\x00", "\ufeff", "😀"]
WORDS = st.sampled_from([*SPEC.split(), *ODD, *ODDER])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | WORDS, inner, max_size=3),
    max_leaves=6,
)
FILES = {
    "rows.csv": b"text,label\ngood film,1\nbad film,0\nfine one,1\ndull one,0\n",
    "rows.tsv": b"label\ttext\n1\tgood film\n0\tbad film\n1\tfine\n0\tdull\n",
    "rows.jsonl": b'{"text": "good", "label": "a"}\n{"text": "bad", "label": "b"}\n{"text": "fine", "label": "a"}\n{"text": "dull", "label": "b"}\n',
    "rows.json": b'[{"text": "good", "label": 1}, {"text": "bad", "label": 0}, {"text": "fine", "label": 1}]',
    "chat.jsonl": b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 3,
    "tags.conll": b"good B-praise\nfilm O\n\nbad B-blame\nfilm O\n\n",
    "prose.txt": b"a film that is good\n\nand one that is bad\n" * 3,
    "squad.json": b'{"data": [{"paragraphs": [{"context": "Ann sings.", "qas": [{"id": "1", "question": "Who?", "answers": '
    b'[{"text": "Ann", "answer_start": 0}]}, {"id": "2", "question": "Why?", "is_impossible": true, "answers": []}]}]}]}',
    "pairs.jsonl": b'{"source": "a day", "target": ["ein Tag", "der Tag"]}\n{"source": "night", "target": ["die Nacht"]}\n' * 2,
    "scored.csv": b"sentence1,sentence2,score\na day,the day,4.5\na night,a film,0.5\n",
}
TASKS = (
    "text_classification", "token_classification", "chat", "causal_lm", "masked_lm", "question_answering", "seq2seq", "embedding",
)  # fmt: skip


@st.composite
def spec_texts(draw: st.DrawFn) -> str:
    """The spec above with lines left out, doubled, moved, or words replaced; or with any value in any place."""
    if draw(st.booleans()):
        values = yaml.safe_load(SPEC)
        place = values
        key = draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and draw(st.booleans()):
            place, key = place[key], draw(st.sampled_from(sorted(place[key])) | st.text(max_size=8))
        place[key] = draw(PLAIN)
        return json.dumps(values)
    lines = SPEC.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1)) if lines else 0
        match draw(st.integers(0, 4)):
            case 0:
                del lines[at : at + 1]
            case 1:
                lines.insert(at, draw(st.sampled_from(SPEC.splitlines())))
            case 2 if lines:
                words = lines[at].split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(WORDS)
                lines[at] = " ".join(words)
            case 3 if lines:
                lines[at] = " " * draw(st.integers(0, 5)) + lines[at]
            case 4 if lines:
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))] + draw(st.text(max_size=4))
    return "\n".join(lines)


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes, str]:
    """(name, content, task): a file as it should be, with bytes cut, doubled, replaced or put in; or any bytes."""
    name = draw(st.sampled_from(sorted(FILES)))
    content = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))] if draw(st.integers(0, 4)) == 0 else FILES[name])
    if draw(st.integers(0, 9)) == 0:
        content = bytearray(draw(st.binary(max_size=80)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.integers(0, 12)), len(content))
        match draw(st.integers(0, 3)):
            case 0:
                del content[start:end]
            case 1:
                content[start:start] = content[start:end] * draw(st.integers(1, 3))
            case 2:
                content[start:end] = draw(st.binary(max_size=4) | st.text(max_size=4).map(str.encode))
            case 3:
                content[start:start] = draw(
                    st.sampled_from([b"\n", b"\n\n", b'"', b",", b"\t", b"{", b"]", b"null", b"\\", b"\r", b"\xff", b"1e999"])
                )
    return name, bytes(content), draw(st.sampled_from(TASKS))


def _read_spec(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        _answer(lambda: load_spec(path))


def _read_file(model: Path, file: tuple[str, bytes, str]) -> None:
    name, content, task = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        spec = {"task": task, "model": str(model), "data": {"train": str(path), "validation": "none"}, "method": "full"}
        found = _answer(lambda: prepare_data(load_spec(spec)))
        assert found is None or len(found.rows["train"]) > 0


def _answer(action: Any) -> Any:
    """What it gives, or None where it refuses as it should."""
    refused: TunesmithError
    try:
        return action()
    except TunesmithError as error:
        refused = error
    assert all(problem.code in CODES and problem.problem for problem in refused.problems)
    assert str(refused).count("\n") < 400
    return None


@QUICK
@given(spec_texts())
def test_any_spec(text: str) -> None:
    _read_spec(text)


def test_any_data_file(tiny_bert: Path) -> None:
    settings(QUICK, max_examples=40)(given(data_files())(lambda file: _read_file(tiny_bert, file)))()


@pytest.mark.slow
@MANY_SPECS
@given(spec_texts())
def test_many_specs(text: str) -> None:
    _read_spec(text)


@pytest.mark.slow
def test_many_data_files(tiny_bert: Path) -> None:
    MANY_FILES(given(data_files())(lambda file: _read_file(tiny_bert, file)))()


@pytest.mark.slow
@settings(QUICK, max_examples=2_500)
@given(st.binary(max_size=200))
def test_many_bytes_as_a_spec(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_bytes(content)
        _answer(lambda: load_spec(path))
