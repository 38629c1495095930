"""Every bad input of the catalogue (the *cases.yaml beside this file) is refused with its code, its place and a fix that works, and nothing is written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_models
from bad_input.odd_files import BUILT, build
from error_examples import documented, sections
from tiny_conversations import write_prose
from tiny_pairs import rows
from tiny_translations import save_tiny_encoder_decoder, write_pairs
from tunesmith.cli import main
from tunesmith.errors import CODES

HERE = Path(__file__).parent
CATALOGUE: dict[str, list[dict[str, Any]]] = {
    kind: cases
    for name in (
        "cases.yaml",
        "answer_cases.yaml",
        "chat_cases.yaml",
        "embedding_cases.yaml",
        "masked_cases.yaml",
        "tag_cases.yaml",
        "translation_cases.yaml",
    )
    for kind, cases in yaml.safe_load((HERE / name).read_text(encoding="utf-8")).items()
}
OUTSIDE_THE_CATALOGUE = {
    "model.hash": "below: needs a package with other files",
    "data.no_mask": "only of a prediction: tests/unit/tasks/test_masked_lm.py",
    "model.tokenizer": "below: needs a tokenizer without tokens",
    "usage.missing_extra": "an installation, not an input: tests/cli/test_chat_commands.py",
    "data.left_out": "no error",
    "model.template": "below: needs a model without one",
    "method.idle": "a run that fails, not a bad input",
    "run.non_finite": "a run that fails, not a bad input",
    "run.out_of_memory": "a run that fails, not a bad input",
    "run.interrupted": "a run that fails, not a bad input",
    "model.changed": "tests/faults/test_changed_model.py",
    "model.remote_code": "tests/faults/test_remote_code.py",
    "run.other_process": "needs another process: tests/unit/runs/test_processes_of_a_run.py",
    "usage.run_in_use": "needs another process: tests/faults/test_checkpoint_faults.py",
    "run.changed": "needs a run that was stopped: tests/faults/test_checkpoint_faults.py",
    "run.best_lost": "a run that fails, not a bad input",
    "run.no_room": "a run that fails, not a bad input",
    "run.not_written": "a run that fails, not a bad input",
    "run.not_read": "a run that fails, not a bad input",
    "run.proof": "a run that fails, not a bad input",
    "run.failed": "never the answer to a bad input",
}
"""Codes without a case, and why."""


def _examples() -> dict[str, str]:
    """The case that docs/error_examples.md shows for each code: the first that has no other problem, or else the first that has it."""
    cases = [case for kind in CATALOGUE.values() for case in kind]
    found = {}
    for case in [*cases, *(case for case in reversed(cases) if len(case["expect"]) == 1)]:
        for wanted in case["expect"]:
            if len(case["expect"]) == 1 or wanted["code"] not in found:
                found[wanted["code"]] = case["case"]
    return found


EXAMPLES = _examples()


def named(kind: str) -> Any:
    return pytest.mark.parametrize("case", CATALOGUE[kind], ids=lambda case: str(case["case"]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; the cache is another, which is removed when empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("tunesmith.resolve.bf16_speedup", lambda: 1.0)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a plugin
    return folder


@pytest.fixture(scope="session")
def runs(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs: one to use, and one whose data changed after training."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    shutil.copy(HERE / "files/good.csv", folder)
    settings = [f"model={tiny_bert}", "train.max_steps=1", "train.precision=fp32", "--no-cache"]
    assert main(["train", str(folder / "good.csv"), *settings, "--run", str(folder / "run")]) == 0
    found["run"] = folder / "run"
    found["changed"] = folder / "changed"
    shutil.copytree(found["run"], found["changed"])
    changed = folder / "changed.csv"
    changed.write_text((folder / "good.csv").read_text(encoding="utf-8") + "one hotel,positive\n", encoding="utf-8")
    for name in ("spec.yaml", "resolved.yaml"):
        path = found["changed"] / name
        path.write_text(path.read_text(encoding="utf-8").replace(str(folder / "good.csv"), str(changed)), encoding="utf-8")
    return found


def lay_out(case: dict[str, Any], folder: Path) -> None:
    """Puts the files of a case, and the good ones, into the folder."""
    for name in ("good.csv", "numbers.csv"):
        shutil.copy(HERE / "files" / name, folder)
    own = HERE / "files" / case["case"]
    if own.is_dir():
        shutil.copytree(own, folder, dirs_exist_ok=True)
    for name, content in case.get("files", {}).items():
        (folder / name).write_text(content, encoding="utf-8")
    if case["case"] in BUILT:
        build(case["case"], folder / case.get("source", "rows.csv"), (folder / "good.csv").read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refuse(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The problems that a command line is refused with; nothing may have been written or leaked."""
    before = contents(folder.parent)
    capsys.readouterr()
    code = main(arguments)
    output = capsys.readouterr()
    assert code == 2, f"exit code {code}\n{output.out}\n{output.err}"
    assert "Traceback" not in output.out + output.err
    assert contents(folder.parent) == before
    error: dict[str, Any] = {**json.loads(output.out)["error"], "arguments": arguments, "printed": output.err}
    for problem in error["problems"]:
        assert problem["code"] in output.err
        assert problem["code"] in CODES
        assert problem["problem"]
        assert len(problem["found"]) < 1000
    return error


def is_at(place: str, wanted: str) -> bool:
    if wanted.startswith("override "):
        return place.startswith(wanted)
    return place == wanted or place.startswith(f"{wanted}, ") or place.endswith(f"/{wanted}")


def assert_as_expected(case: dict[str, Any], error: dict[str, Any]) -> None:
    problems = error["problems"]
    shown = json.dumps(problems, indent=2, ensure_ascii=False)
    assert Counter(problem["code"] for problem in problems) == Counter(wanted["code"] for wanted in case["expect"]), shown
    assert error["counts"] == case.get("counts", Counter(wanted["code"] for wanted in case["expect"])), shown
    for wanted in case["expect"]:
        assert any(
            problem["code"] == wanted["code"]
            and is_at(problem["where"], wanted.get("where", problem["where"]))
            and wanted.get("found", "") in problem["found"]
            and wanted.get("fix", "") in problem["fix"]
            for problem in problems
        ), f"{wanted} is not among\n{shown}"
    for code in (code for code, name in EXAMPLES.items() if name == case["case"]):
        document(code, case, error["arguments"], error["printed"])


def document(code: str, case: dict[str, Any], arguments: list[str], printed: str) -> None:
    """Compares what was printed of a case with docs/error_examples.md, beside the case's own files."""
    own = HERE / "files" / case["case"]
    files = (
        {path.name: path.read_text(encoding="utf-8", errors="replace") for path in sorted(own.iterdir()) if path.is_file()}
        if own.is_dir()
        else {}
    )
    shown = [argument for argument in arguments if argument not in ("--no-measure", "--no-cache", "--json")]
    names = {argument.partition("=")[2]: "MODEL" for argument in arguments if argument.startswith("model=/")}
    names |= {argument: "RUN" for argument in arguments if argument.startswith("/")}
    files |= case.get("files", {})
    documented(code, f"tunesmith {shlex.join(shown)}", printed, {**names, f"{Path.cwd()}/": ""}, files)


def check_arguments(case: dict[str, Any], default: str, model: Path) -> list[str]:
    own = [] if case.get("model") == "own" else [f"model={model}"]
    flags = ["--no-measure", "--no-cache", "--json"]
    return ["check", case.get("source", default), *own, *case.get("overrides", []), *flags]


def assert_fix_works(case: dict[str, Any], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if "fix_with" in case:
        assert main([*arguments[:-3], *case["fix_with"], *arguments[-3:]]) == 0, capsys.readouterr().err


@named("spec")
def test_bad_spec(case: dict[str, Any], folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    arguments = check_arguments(case, "spec.yaml", tiny_bert)
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@named("data")
def test_bad_data(case: dict[str, Any], folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    arguments = check_arguments(case, "rows.csv", tiny_bert)
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("llama", tmp_path_factory.mktemp("models"), "AutoModelForCausalLM")


@named("chat")
def test_bad_conversations(case: dict[str, Any], folder: Path, tiny_chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    arguments = check_arguments(case, "rows.jsonl", tiny_chat)
    arguments = [*arguments[:-3], "task.template=chatml", *arguments[-3:]]
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@named("tags")
def test_bad_tags(case: dict[str, Any], folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    arguments = check_arguments(case, "rows.conll", tiny_bert)
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@named("answers")
def test_bad_questions_and_answers(case: dict[str, Any], folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    arguments = check_arguments(case, "rows.jsonl", tiny_bert)
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@pytest.fixture(scope="session")
def tiny_masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("bert", tmp_path_factory.mktemp("models") / "masked", "AutoModelForMaskedLM")


@named("masked")
def test_bad_masked_texts_and_new_models(case: dict[str, Any], folder: Path, tiny_masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    write_prose(folder / "prose.txt", 2500)
    arguments = check_arguments(case, "prose.txt", tiny_masked)
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@named("embedding")
def test_bad_pairs(case: dict[str, Any], folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    for kind in ("pairs", "triplets", "scored_pairs", "labelled_pairs"):
        lines = rows(kind, 20)
        (folder / "one_pair.jsonl").write_text(json.dumps(rows("pairs", 20)[0]) + "\n")
        for number, values in case.get("edit", {}).items() if case["source"] == f"{kind}.jsonl" else ():
            lines[number - 1].update(values)
        kept = [{name: value for name, value in line.items() if value is not None} for line in lines]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    arguments = check_arguments({"overrides": [], **case}, "", tiny_bert)
    arguments[2:2] = ["task.name=embedding", "speed.off=all"]
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder_decoder("bart", tmp_path_factory.mktemp("models") / "bart")


@named("translations")
def test_bad_translations(case: dict[str, Any], folder: Path, tiny_bart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(case, folder)
    write_pairs(folder / "pairs.jsonl")
    arguments = check_arguments(case, "pairs.jsonl", tiny_bart)
    assert_as_expected(case, refuse(arguments, folder, capsys))
    assert_fix_works(case, arguments, capsys)


@named("run")
def test_bad_command(
    case: dict[str, Any], folder: Path, tiny_bert: Path, runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(case, folder)
    names = {"model": tiny_bert, **runs}
    arguments = [argument.format_map(names) for argument in case["command"]]
    assert_as_expected(case, refuse_loosely(arguments, folder, capsys))


def refuse_loosely(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """As `refuse`, also of commands that know no --json: then the problems are read from the screen."""
    if arguments[0] in ("init", "--plugin", "trian"):
        return refuse_on_screen(arguments, folder, capsys)
    return refuse([*arguments, "--json"], folder, capsys)


def refuse_on_screen(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    before = contents(folder.parent)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert contents(folder.parent) == before
    problem = {"where": "", "found": "", "fix": ""}
    first, *rest = output.err.strip().splitlines()
    problem["code"], _, problem["problem"] = first.partition(": ")
    for line in rest:
        name, _, value = line.strip().partition(" ")
        problem[{"at": "where"}.get(name, name)] = value.strip()
    return {"problems": [problem], "counts": {problem["code"]: 1}, "arguments": arguments, "printed": output.err}


def test_a_packaged_model_with_other_files(
    folder: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.models import catalog

    package = folder / "changed_model"
    shutil.copytree(tiny_bert, package / "model")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    entry = catalog.CatalogEntry("changed", "", "nobody/changed", "changed-model==1", "changed_model/model", "0" * 64)
    monkeypatch.setitem(catalog.CATALOG, "changed", entry)
    shutil.copy(HERE / "files/good.csv", folder)
    error = refuse(["check", "good.csv", "model=changed", "--no-measure", "--json"], folder, capsys)
    assert [problem["code"] for problem in error["problems"]] == ["model.hash"]
    assert "pip install --force-reinstall changed-model==1" in error["problems"][0]["fix"]
    documented("model.hash", "tunesmith check good.csv model=changed", error["printed"], {f"{folder}/": ""})


def test_a_model_without_a_chat_template(folder: Path, tiny_chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a day", "completion": "warm"}\n')
    error = refuse(
        ["check", "rows.jsonl", "task=chat", "data.validation=none", f"model={tiny_chat}", "--no-measure", "--no-cache", "--json"],
        folder,
        capsys,
    )
    assert [problem["code"] for problem in error["problems"]] == ["model.template"]
    assert "chatml" in error["problems"][0]["fix"]
    documented("model.template", "tunesmith check rows.jsonl task=chat model=MODEL", error["printed"], {tiny_chat: "MODEL"})


def test_an_encoder_cannot_chat(folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a day", "completion": "warm"}\n')
    error = refuse(
        ["check", "rows.jsonl", "task=chat", "data.validation=none", f"model={tiny_bert}", "--no-measure", "--no-cache", "--json"],
        folder,
        capsys,
    )
    assert [problem["code"] for problem in error["problems"]] == ["model.load"]
    assert "smollm2" in error["problems"][0]["fix"]


def test_a_tokenizer_that_cannot_pad(folder: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"a": 0, "film": 1, "?": 2}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    for name in ("config.json", "model.safetensors"):
        (folder / "bare").mkdir(exist_ok=True)
        shutil.copy(tiny_bert / name, folder / "bare")
    PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(folder / "bare")
    shutil.copy(HERE / "files/good.csv", folder)
    error = refuse(["check", "good.csv", "model=./bare", "--no-measure", "--no-cache", "--json"], folder, capsys)
    assert [problem["code"] for problem in error["problems"]] == ["model.tokenizer"]
    assert "pad_token" in error["problems"][0]["fix"]
    documented("model.tokenizer", "tunesmith check good.csv model=./bare", error["printed"], {f"{folder}/": ""})


def test_a_mapping_is_checked_like_a_file(tiny_bert: Path) -> None:
    from tunesmith.errors import InputError
    from tunesmith.verbs.init import spec_of

    contains_itself: dict[str, Any] = {}
    contains_itself["extra"] = contains_itself
    for mapping, codes in (
        ({"data": {"train": 3}, "train": {"lerning_rate": 1}}, {"spec.value", "spec.unknown_key"}),
        ({"data": "good.csv", "train": contains_itself}, {"spec.value"}),
        ({"data": {"train": "good.csv", "validation": object()}}, {"spec.value"}),
        ({3: 4}, {"spec.unknown_key", "spec.missing_key"}),
    ):
        with pytest.raises(InputError) as caught:
            spec_of(mapping)
        assert {problem.code for problem in caught.value.problems} == codes


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t", "&", "#"])
def test_a_delimiter_needs_no_quotes(folder: Path, tiny_bert: Path, delimiter: str, capsys: pytest.CaptureFixture[str]) -> None:
    """To YAML most of these mean something."""
    rows = (HERE / "files/good.csv").read_text(encoding="utf-8").replace(",", delimiter)
    Path("rows.csv").write_text(rows, encoding="utf-8")
    arguments = ["check", "rows.csv", f"model={tiny_bert}", f"data.delimiter={delimiter}", "--no-measure", "--no-cache", "--json"]
    assert main(arguments) == 0, capsys.readouterr().err


def test_the_command_exits_with_2_and_without_a_traceback(folder: Path) -> None:
    lay_out({"case": "unknown_keys"}, folder)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tunesmith.cli", "check", "spec.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "spec.unknown_key: train.lerning_rate does not exist",
        "  at     spec.yaml:3",
        "  found  lerning_rate",
        "  fix    did you mean learning_rate?",
        "spec.unknown_key: tasks does not exist",
        "  at     spec.yaml:5",
        "  found  tasks",
        "  fix    did you mean task?",
        "2 problems: 2 spec.unknown_key",
    ]


def test_every_code_has_a_case() -> None:
    shown = {wanted["code"] for cases in CATALOGUE.values() for case in cases for wanted in case["expect"]}
    assert shown | set(OUTSIDE_THE_CATALOGUE) == set(CODES)
    assert not shown & set(OUTSIDE_THE_CATALOGUE)


def test_every_code_has_an_example_that_is_executed() -> None:
    assert list(sections()) == list(CODES)
    tests = "".join(path.read_text(encoding="utf-8") for path in HERE.parent.rglob("test_*.py"))
    assert [code for code in CODES if code not in EXAMPLES and f'documented("{code}"' not in tests] == []


def test_every_case_has_its_files_and_every_file_its_case() -> None:
    names = {case["case"] for cases in CATALOGUE.values() for case in cases}
    groups = ("answers", "chat", "tags")
    folders = {path.name for path in (HERE / "files").iterdir() if path.is_dir()} - {*groups}
    folders |= {f"{group}/{path.name}" for group in groups for path in (HERE / "files" / group).iterdir()}
    assert folders <= names
    assert set(BUILT) <= names
    assert max(path.stat().st_size for path in (HERE / "files").rglob("*") if path.is_file()) <= 5_000
