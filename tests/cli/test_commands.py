"""The command line, as a user has it: every command, what it prints where, and its exit code."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from error_examples import documented
from tiny_models import save_tiny, write_jsonl
from tunesmith.cli import main

COMMANDS = ("init", "check", "train", "resume", "evaluate", "predict", "tasks", "methods", "accelerations", "models", "schema")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", num_rows=120)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run made by a process of its own, and what `train --json` printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    model = save_tiny("bert", tmp_path_factory.mktemp("models") / "bert")
    settings = [f"model={model}", "train.epochs=20", "train.learning_rate=5e-3", "train.batch_size=8", "data.validation=25%"]
    done = _tunesmith("train", str(data), *settings, "--run", str(run), "--json")
    assert done.returncode == 0, done.stderr
    return run, json.loads(done.stdout)


def _tunesmith(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_train_prints_one_object_and_keeps_all_files(trained: tuple[Path, dict[str, Any]]) -> None:
    run, printed = trained
    assert printed["metrics"].keys() >= {"accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc", "loss"}
    assert printed["metrics"]["accuracy"] > 0.8
    assert printed["train_seconds"] > 0
    assert printed["run"] == str(run)
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "spec.yaml",
        "resolved.yaml",
        "decisions.json",
        "environment.json",
        "data.json",
        "events.jsonl",
        "proof.json",
        "result.json",
        "eval",
    }
    assert {path.name for path in (run / "model").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert [path.name for path in (run / "checkpoints").iterdir() if (path / "manifest.json").is_file()]
    proof = json.loads((run / "proof.json").read_text())
    assert proof["proven"]
    assert proof["num_rows"] == 30
    assert "auto" not in (run / "resolved.yaml").read_text().replace("format: auto", "").replace("delimiter: auto", "").replace(
        "header: auto", ""
    ).replace("quoting: auto", "").replace("encoding: auto", "")


def test_the_model_loads_with_transformers_alone(trained: tuple[Path, dict[str, Any]]) -> None:
    script = (
        "import sys; sys.modules['tunesmith'] = None\n"
        "from transformers import pipeline\n"
        f"print(pipeline('text-classification', {str(trained[0] / 'model')!r})('the great film')[0]['label'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.stdout.strip() == "good", done.stderr


def test_evaluate_repeats_what_training_found(trained: tuple[Path, dict[str, Any]], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, printed = trained
    found = _json(capsys, "evaluate", str(run))
    assert found["split"] == "validation"
    assert found["metrics"] == printed["metrics"]
    assert found["run"] == str(run)
    other = _json(capsys, "evaluate", str(run), "--data", str(data))
    assert other["num_rows"] == 120
    assert main(["evaluate", str(run)]) == 0
    assert "rows true, columns predicted" in capsys.readouterr().out


def test_predict_from_everywhere(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(trained[0])
    texts = _json(capsys, "predict", run, "--text", "the great film", "--text", "the awful film")["predictions"]
    assert [row["label"] for row in texts] == ["good", "bad"]
    assert texts[0]["text"] == "the great film"
    assert sum(texts[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the great film\n\nthe awful film\n"))
    assert main(["predict", run, "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["good", "bad"]
    whole = _json(capsys, "predict", run, str(data))["predictions"]
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["text"] for row in whole] == [row["text"] for row in rows]
    assert sum(row["label"] == expected["label"] for row, expected in zip(whole, rows, strict=True)) > 95
    for name in ("out.jsonl", "out.csv"):
        written = _json(capsys, "predict", run, str(data), "--out", str(tmp_path / name))
        assert written == {"rows": 120, "resumed_after": 0, "out": str(tmp_path / name)}
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == whole
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in whole]


def test_rows_may_be_called_what_they_are_where_the_run_had_another_name(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    resolved = (run / "resolved.yaml").read_text()
    assert "text: text" in resolved
    (run / "resolved.yaml").write_text(resolved.replace("text: text", "text: review"))  # as a file without a header has column_1
    predicted = _json(capsys, "predict", str(run), str(data))["predictions"]
    assert len(predicted) == 120
    assert _json(capsys, "evaluate", str(run), "--data", str(data))["num_rows"] == 120
    (tmp_path / "other.jsonl").write_text(json.dumps({"body": "the great film"}) + "\n")
    assert main(["predict", str(run), str(tmp_path / "other.jsonl")]) == 2
    assert "review" in capsys.readouterr().err


def test_interrupted_predictions_go_on(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.verbs import predict

    run, out = str(trained[0]), tmp_path / "out.jsonl"
    assert main(["predict", run, str(data), "--out", str(tmp_path / "whole.jsonl")]) == 0
    write = predict._write_jsonl

    def pull_the_plug(rows: Any, file: Any) -> int:
        write(itertools.islice(rows, 70), file)
        file.write('{"text": "cut o')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "_write_jsonl", pull_the_plug)
        assert main(["predict", run, str(data), "--out", str(out)]) == 1
    assert not out.exists()
    assert _json(capsys, "predict", run, str(data), "--out", str(out))["resumed_after"] == 70
    # batches are cut otherwise, so scores may differ in the last place
    found, expected = ([json.loads(line) for line in path.read_text().splitlines()] for path in (out, tmp_path / "whole.jsonl"))
    assert [(row["text"], row["label"]) for row in found] == [(row["text"], row["label"]) for row in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


def test_predictions_of_other_rows_are_not_gone_on_with(
    trained: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(trained[0]), tmp_path / "out.jsonl"
    (tmp_path / ".out.jsonl.partial").write_text('{"text": "of another file"}\n')
    (tmp_path / ".out.jsonl.partial.key").write_text("another key")
    assert _json(capsys, "predict", run, str(data), "--out", str(out))["resumed_after"] == 0
    assert "of another file" not in out.read_text()


def test_batches_of_one_predict_the_same(trained: tuple[Path, dict[str, Any]], data: Path) -> None:
    import tunesmith

    run = tunesmith.open_run(trained[0])
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()][:20]
    together = run.predict(texts)
    for text, row in zip(texts, together, strict=True):
        alone = run.predict(text)[0]
        assert alone["label"] == row["label"]
        assert alone["score"] == pytest.approx(row["score"], abs=2e-2 if run.spec.train.precision == "bf16" else 1e-5)


def test_what_the_model_did_not_read_is_said(trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    import tunesmith

    run = tunesmith.open_run(trained[0])
    longer = 5 + run.spec.task.max_length  # type: ignore[attr-defined]
    whole, cut = run.predict(["the film", "the " * longer])
    assert "cut_tokens" not in whole
    assert cut["cut_tokens"] == 7  # the five that are too many, and two for what stands before and after a text
    assert main(["predict", str(trained[0]), "--text", "the " * longer]) == 0
    assert "   (7 tokens were not read)" in capsys.readouterr().out


def test_init_gives_a_spec_that_checks(data: Path, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    assert main(["init", str(data), "--model", str(tiny_bert), "--out", str(spec)]) == 0
    assert main(["init", str(data), "--out", str(spec)]) == 2
    assert "usage.output_exists" in capsys.readouterr().err
    report = _json(capsys, "check", str(spec), "--no-measure")
    assert report["data"]["rows"] == {"train": 108, "validation": 12}
    assert report["steps"] == 12
    assert report["estimate"] is None
    assert all(decision["because"] for decision in report["decisions"])


def test_check_measures_and_shows(data: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), f"model={tiny_bert}"]) == 0
    shown = capsys.readouterr().out
    for part in ("training labels: ", "lengths in tokens:", "decided:", "<[CLS]>", "trainable parameters: ", "estimate: ", "rows.jsonl:"):
        assert part in shown, part


def test_check_json_has_estimates(data: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _json(capsys, "check", str(data), f"model={tiny_bert}", "method=lora")
    assert report["estimate"]["seconds"] > 0
    assert report["estimate"]["peak_memory_mb"] > 10
    assert 0 < report["parameters"]["trainable"] < report["parameters"]["all"]


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, "tasks").keys() >= {"text_classification"}
    assert _json(capsys, "methods").keys() >= {"full", "lora"}
    assert _json(capsys, "accelerations").keys() >= {"linear", "end_to_end"}
    assert _json(capsys, "models").keys() >= {"minilm", "bert", "modernbert"}
    assert main(["methods"]) == 0
    assert "low-rank" in capsys.readouterr().out
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == {"task", "model", "data", "method", "train", "speed"}


def test_pull_an_installed_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "models", "pull", "minilm")
    assert Path(found["path"], "model.safetensors").is_file()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["evaluate"], ["predict", "x", "--colour"], ["models", "push", "x"]])
def test_wrong_command_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage.argument" in capsys.readouterr().err


def test_a_mistake_is_one_json_object_too(tmp_path: Path) -> None:
    done = _tunesmith("train", str(tmp_path / "nothing.csv"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["problems"][0]["code"] == "spec.no_such_file"
    assert "Traceback" not in done.stderr


def test_sigterm_saves_and_resume_ends_it(data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(data), f"model={tiny_bert}", "train.epochs=2000", "train.save_steps=none", "train.logging_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith.cli", *arguments, "--run", str(run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while process.poll() is None and not ((run / "events.jsonl").exists() and '"log"' in (run / "events.jsonl").read_text()):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "run.interrupted" in said
    assert f"tunesmith resume {run}" in said
    assert list((run / "checkpoints").glob("checkpoint-*/manifest.json"))


def test_what_nobody_foresaw_is_no_traceback_but_a_file_to_report(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("tunesmith.pipeline.train", broken)
    monkeypatch.setattr("tempfile.tempdir", str(data.parent))
    assert main(["train", str(data)]) == 1
    printed = capsys.readouterr().err
    assert "ZeroDivisionError" in next(data.parent.glob("tunesmith-traceback-*")).read_text()
    documented("run.failed", "tunesmith train rows.jsonl model=MODEL", printed, {})
