"""A model's own code: run only where the environment names the hash of what lies there, and then trained, proven and loaded as any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tunesmith
from error_examples import documented
from tiny_models import save_tiny, write_jsonl
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.remote_code import VARIABLE, hash_of_code
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION
from tunesmith.verbs.merge import merge

CONFIGURATION = "from transformers import {family}Config\n\n\nclass OwnConfig({family}Config):\n    model_type = 'own'\n"
MODELING = """\
from pathlib import Path

from transformers import {family}{head}

from .configuration_own import OwnConfig

Path("{marker}").touch()


class Own{head}({family}{head}):
    config_class = OwnConfig
"""
SETTINGS = ["train.precision=fp32", "train.max_steps=3", "train.batch_size=16"]


def own_model(folder: Path, family: str = "Bert", head: str = "ForSequenceClassification") -> Path:
    """A tiny model that only its own code loads; one of the files is imported by none."""
    auto_model = f"AutoModel{head}"
    save_tiny(family.lower(), folder, auto_model)
    config = json.loads((folder / "config.json").read_text())
    automatic = {"AutoConfig": "configuration_own.OwnConfig", auto_model: f"modeling_own.Own{head}"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": automatic}))
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(family=family))
    (folder / "modeling_own.py").write_text(MODELING.format(family=family, head=head, marker=folder.with_name("ran")))
    (folder / "convert.py").write_text("# how the weights were made\n")
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_trusted_code_is_trained_with(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = own_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    write_jsonl(data, num_rows=60)
    code = hash_of_code(folder)
    assert code is not None
    settings = [f"model={folder}", f"method={method}", *SETTINGS]

    def refused(run: Path) -> tunesmith.InputError:
        with pytest.raises(tunesmith.InputError) as caught:
            tunesmith.train(str(data), settings, run=run, quiet=True)
        assert caught.value.code == "model.remote_code"
        return caught.value

    error = refused(tmp_path / "refused")
    assert f"export {VARIABLE}={code}" in str(error)
    documented("model.remote_code", "tunesmith train rows.csv model=MODEL", str(error), {folder: "MODEL"})
    monkeypatch.setenv(VARIABLE, f"sha256:{'0' * 64}")
    assert f"{VARIABLE} names sha256:000" in str(refused(tmp_path / "refused"))
    assert not (tmp_path / "ran").exists()

    monkeypatch.setenv(VARIABLE, f"sha256:{'0' * 64}, {code}")
    run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    assert "trust_remote_code=True" in (run.path / "model/README.md").read_text()
    decided = {decision["field"]: decision["value"] for decision in json.loads((run.path / "decisions.json").read_text())}
    assert decided["model code"] == code
    assert hash_of_code(run.path / "model") == json.loads((run.path / "model.json").read_text())["*.py"] == code
    assert (tmp_path / "ran").exists()
    assert tunesmith.open_run(run.path).predict(["a good film"])[0]["label"]

    # Neither a run directory nor a folder that is no longer the same says for itself that it may run.
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(tunesmith.InputError, match=r"model\.remote_code"):
        tunesmith.open_run(run.path).predict(["a good film"])
    monkeypatch.setenv(VARIABLE, code)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(family="Bert") + "# and more\n")
    refused(tmp_path / "other")


def test_adapters_on_trusted_code_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = own_model(tmp_path / "model", "Llama", "ForCausalLM"), tmp_path / "rows.txt"
    data.write_text("".join(f"one two three four five good bad {index}\n" for index in range(80)))
    code = hash_of_code(folder)
    assert code is not None
    monkeypatch.setenv(VARIABLE, code)
    settings = [f"model={folder}", "task=causal_lm", "method=lora", "task.max_length=32", "data.validation=none", *SETTINGS]
    run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
    assert json.loads((run.path / "proof.json").read_text())["proven"]
    assert merge(run, tmp_path / "merged", quiet=True)["proven"]
    assert hash_of_code(tmp_path / "merged") == code


@pytest.mark.parametrize(
    ("automatic", "says"),
    [
        ({"AutoConfig": "somebody/else--configuration_own.OwnConfig"}, "code of another repository, somebody/else"),
        ({"AutoConfig": "configuration_own.OwnConfig"}, "no Python file lies there"),
    ],
    ids=["elsewhere", "not there"],
)
def test_code_that_is_not_in_the_folder_is_refused(
    automatic: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = own_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    write_jsonl(data, num_rows=60)
    monkeypatch.setenv(VARIABLE, str(hash_of_code(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": automatic}))
    if "no Python" in says:
        for file in folder.glob("*.py"):
            file.unlink()
    with pytest.raises(tunesmith.InputError, match=says) as caught:
        tunesmith.train(str(data), [f"model={folder}"], run=tmp_path / "run", quiet=True)
    assert caught.value.code == "model.remote_code"
    assert not (tmp_path / "ran").exists()


def test_code_that_is_not_needed_is_not_run(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    automatic = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model", "AutoTokenizer": "code.Tokenizer"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": automatic}))
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'owned')!r})\n")
    load_tokenizer(folder)
    assert load_model(folder, TEXT_CLASSIFICATION, {}, 0).model.config.model_type == "bert"
    assert not (tmp_path / "owned").exists()


def test_vectors_are_not_made_with_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = own_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"a {index}", "pair": f"b {index}"}) + "\n" for index in range(60)))
    monkeypatch.setenv(VARIABLE, str(hash_of_code(folder)))
    with pytest.raises(tunesmith.InputError, match="another library") as caught:
        tunesmith.train(str(data), [f"model={folder}", "task=embedding"], run=tmp_path / "run", quiet=True)
    assert caught.value.code == "spec.conflict"
