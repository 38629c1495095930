"""A model that is no longer what a run started from: what was trained on it is not put on another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import tunesmith
from error_examples import documented
from faulty_runs import acting, crash
from tiny_models import save_tiny
from tunesmith import pipeline
from tunesmith.verbs.merge import merge

pytestmark = pytest.mark.usefixtures("without_proof")
SETTINGS = [
    "task=causal_lm", "task.max_length=32", "task.generation.max_new_tokens=4", "data.validation=none", "train.precision=fp32",
    "train.max_steps=4", "train.save_steps=2",
]  # fmt: skip


def _move_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_goes_on_with_the_model_it_started_from(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data, run = save_tiny("llama", tmp_path / "model", "AutoModelForCausalLM"), tmp_path / "rows.txt", tmp_path / "run"
    data.write_text("".join(f"one two three four five good bad {index}\n" for index in range(80)))
    with acting(monkeypatch, "on_step_end", 3, crash), pytest.raises(RuntimeError, match="pulled the plug"):
        tunesmith.train(str(data), [f"model={folder}", f"method={method}", *SETTINGS], run=run, quiet=True)
    shutil.copytree(folder, tmp_path / "as it was")
    _move_a_weight(folder)
    with pytest.raises(tunesmith.InputError) as caught:
        pipeline.resume(run, accept_changes=True, quiet=True)
    assert caught.value.code == "model.changed"
    assert caught.value.problems[0].found == "model.safetensors"
    documented("model.changed", "tunesmith resume RUN --accept-changes", str(caught.value), {folder: "MODEL"})

    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "as it was", folder)
    done = pipeline.resume(run, quiet=True)
    assert done.predict(["one two"])[0]["answer"] is not None

    _move_a_weight(folder)
    again = tunesmith.open_run(run)
    if method == "full":  # a model of its own
        again.predict(["one two"])
        return
    uses = (
        lambda: again.predict(["one two"]),
        lambda: again.evaluate(data, compare=True, quiet=True),
        lambda: merge(again, tmp_path / "merged"),
    )
    for use in uses:
        with pytest.raises(tunesmith.InputError) as caught:
            use()
        assert caught.value.code == "model.changed"
    assert not (tmp_path / "merged").exists()
