"""What docs/security.md promises: no code from data, models or checkpoints, no network for local files, no secrets on disk."""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from error_examples import documented
from faulty_runs import acting, crash, train
from tiny_models import save_tiny, write_jsonl
from tunesmith import pipeline
from tunesmith.models.load import load_model
from tunesmith.runs.checkpoints import MANIFEST, is_whole, seal_checkpoint
from tunesmith.runs.secrets import redact
from tunesmith.tasks.text_classification import TEXT_CLASSIFICATION

pytestmark = pytest.mark.usefixtures("without_proof")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_the_payload_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()


def test_no_file_of_a_checkpoint_runs_code(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with acting(monkeypatch, "on_step_begin", 4, crash), pytest.raises(RuntimeError, match="pulled the plug"):
        train(tiny_bert, run)
    checkpoint = run / "checkpoints/checkpoint-3"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        original = (checkpoint / name).read_bytes()
        torch.save(Payload(tmp_path / "owned"), checkpoint / name)
        seal_checkpoint(checkpoint)  # whoever can write there can seal as well
        assert is_whole(checkpoint)
        with pytest.raises(tunesmith.RunError) as caught:
            pipeline.resume(run, quiet=True)
        assert caught.value.code == "run.not_read"
        if name == "optimizer.pt":
            documented("run.not_read", "tunesmith resume RUN", str(caught.value), {run: "RUN"})
        assert not (tmp_path / "owned").exists()
        (checkpoint / name).write_bytes(original)
        seal_checkpoint(checkpoint)
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    assert pipeline.resume(run, quiet=True).result
    assert not (tmp_path / "owned").exists()


def test_a_manifest_does_not_reach_outside_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "inside").write_text("x")
    seal_checkpoint(folder)
    assert is_whole(folder)
    digest = json.loads((folder / MANIFEST).read_text())["inside"]
    for name in ("../outside", str(tmp_path / "outside")):
        (folder / MANIFEST).write_text(json.dumps({name: digest}))
        assert not is_whole(folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    with pytest.raises(tunesmith.InputError) as caught:
        load_model(folder, TEXT_CLASSIFICATION, {}, 0)
    assert caught.value.code == "model.load"
    assert not (tmp_path / "owned").exists()


def test_local_files_never_ask_the_network_and_secrets_stay_out(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked: list[Any] = []

    def refuse(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    secrets = {"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz", "MY_API_KEY": "correct horse battery"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    before = os.umask(0o077)
    try:
        data = write_jsonl(tmp_path / "rows.jsonl", num_rows=60)
        extra = [f"train.extra.run_name={value}" for value in secrets.values()][:1]
        settings = [f"model={tiny_bert}", "train.max_steps=2", "train.precision=fp32", "speed.off=all", *extra]
        run = tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)
        run.evaluate(quiet=True)
        run.predict(["good"])
    finally:
        os.umask(before)
    assert asked == []
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        content = path.read_bytes()
        assert not any(value.encode() in content for value in secrets.values()), path
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_a_token_in_the_spec_is_refused_and_not_shown(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=60)
    spec = {"model": str(tiny_bert), "data": str(data), "train": {"extra": {"hub_token": "abc-def-ghi"}}}
    with pytest.raises(tunesmith.InputError) as caught:
        tunesmith.train(spec, run=tmp_path / "run", quiet=True)
    assert caught.value.code == "spec.no_effect"
    assert "HF_TOKEN" in str(caught.value)
    assert "abc-def-ghi" not in str(caught.value)


def test_what_is_hidden_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "a long password")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true-and-more-than-that")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    text = "a long password, true, true-and-more-than-that, sk-aaaaaaaaaaaaaaaaaaaaaaaa, task-force, hf_hub"
    assert redact(text) == "(hidden), true, true-and-more-than-that, (hidden), task-force, hf_hub"
