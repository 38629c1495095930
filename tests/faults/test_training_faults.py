"""What goes wrong while training ends with a code, what was found, and all that was done kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import tunesmith
from error_examples import documented
from faulty_runs import acting, assert_same_end, train
from tiny_models import write_jsonl
from tunesmith import prepare_data
from tunesmith.engines.trainer import PlannedTrainer
from tunesmith.engines.watch import Watch
from tunesmith.runs.checkpoints import Checkpoints

SETTINGS = ["train.batch_size=8", "train.epochs=2", "train.precision=fp32"]


def test_a_loss_that_is_no_number_names_step_and_rows(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    with pytest.raises(tunesmith.RunError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS, "train.learning_rate=1e30"], run=tmp_path / "run", quiet=True)
    problem = caught.value.problems[0]
    assert problem.code == "run.non_finite"
    assert problem.where.startswith("step ")
    assert "rows.jsonl:" in problem.found
    assert "learning_rate" in problem.fix
    assert caught.value.exit_code == 1
    documented("run.non_finite", "tunesmith train rows.jsonl model=MODEL train.learning_rate=1e30", str(problem), {})


def _little_memory(monkeypatch: pytest.MonkeyPatch, most_tokens: int) -> None:
    """A forward pass over more padded tokens than these asks for memory that no machine has."""
    original = PlannedTrainer.compute_loss

    def limited(self: Any, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        loss = original(self, model, inputs, *arguments, **named)
        if inputs["input_ids"].numel() > most_tokens:
            torch.empty(1 << 55)
        return loss

    monkeypatch.setattr(PlannedTrainer, "compute_loss", limited)


def test_too_little_memory_halves_the_micro_batch_and_nothing_else(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", num_rows=80))
    settings = [f"model={tiny_bert}", *SETTINGS, "speed.off=all", "train.save_steps=none", "train.load_best_model_at_end=false"]
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    with monkeypatch.context() as patch:
        _little_memory(patch, 50)
        run = tunesmith.train(data, settings, run=tmp_path / "run", quiet=True)
    halved = [event for event in run.directory.events() if event["event"] == "memory"]
    assert halved[0]["step"] == 0
    assert "too many for the memory there is" in halved[0]["found"]
    assert len({event["tokens"] for event in halved}) == len(halved) >= 1
    # The same gradient, and with the same cuts from the start the same bits: dropout draws again what the failed pass drew.
    smallest = min(event["tokens"] for event in halved)
    if all(event["step"] == 0 for event in halved):
        expected = tunesmith.train(data, [*settings, f"train.max_tokens_per_micro_batch={smallest}"], run=tmp_path / "small", quiet=True)
        tensors = [load_file(folder / "model/model.safetensors") for folder in (run.path, expected.path)]
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert smallest <= 50


def test_too_little_memory_for_one_row_says_what_to_change(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _little_memory(monkeypatch, 3)
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    with pytest.raises(tunesmith.RunError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS], run=tmp_path / "run", quiet=True)
    problem = caught.value.problems[0]
    assert problem.code == "run.out_of_memory"
    assert problem.where.startswith("step 1, a micro-batch of 1 rows")
    assert "this process had up to" in problem.found
    assert "task.max_length" in problem.fix
    documented("run.out_of_memory", "tunesmith train rows.jsonl model=MODEL", str(problem), {})


class Spoil(TrainerCallback):
    """Makes what the classifier gives, or its gradient, not a number in chosen steps."""

    def __init__(self, steps: set[int], what: str) -> None:
        self.steps, self.what, self.handle = steps, what, None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step + 1 not in self.steps:
            return
        if self.what == "output":
            self.handle = model.bert.encoder.layer[1].output.dense.register_forward_hook(lambda module, given, found: found * float("nan"))
        elif self.what == "0":
            self.handle = model.classifier.register_forward_hook(lambda module, given, found: found.detach().requires_grad_())
        else:
            self.handle = model.classifier.weight.register_hook(lambda gradient: gradient * float(self.what))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


def _spoilt(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, *overrides: str) -> Any:
    original = PlannedTrainer.__init__

    def with_spoil(self: Any, job: Any) -> None:
        job.callbacks.append(spoil)
        original(self, job)

    monkeypatch.setattr(PlannedTrainer, "__init__", with_spoil)
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    settings = [f"model={tiny_bert}", *SETTINGS, "speed.off=all", "train.logging_steps=1", *overrides]
    return tunesmith.train(str(data), settings, run=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("what", "problem", "found"),
    [
        ("output", "the loss is nan at step 3", "in the output of bert.encoder.layer.1.output.dense (Linear), among"),
        ("inf", "the norm of the gradient is", "the gradient of classifier.weight and 0 other parameters, in a step of 8 rows"),
    ],
)
def test_what_is_not_finite_is_traced_to_its_module(
    what: str, problem: str, found: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(tunesmith.RunError) as caught:
        _spoilt(tiny_bert, tmp_path, monkeypatch, Spoil({3}, what))
    assert caught.value.code == "run.non_finite"
    assert problem in caught.value.problems[0].problem
    assert found in caught.value.problems[0].found
    assert "rows.jsonl:" in caught.value.problems[0].found
    assert "the weights are finite" in caught.value.problems[0].found


@pytest.mark.parametrize("what", ["output", "nan"])
def test_a_step_that_is_not_finite_can_be_skipped(what: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _spoilt(tiny_bert, tmp_path, monkeypatch, Spoil({3, 4}, what), "train.on_non_finite=skip", "train.lr_scheduler_type=constant")
    assert run.result["skipped_steps"] == 2
    events = run.directory.events()
    assert [event["step"] for event in events if event["event"] == "skipped"] == [3, 4]
    logged = {event["step"]: event for event in events if event["event"] == "log"}
    assert "loss" not in logged[3]
    assert logged[3]["skipped_steps"] == 1
    assert "skipped_steps" not in logged[5]
    state = torch.load(Checkpoints(run.path / "checkpoints").all()[-1] / "optimizer.pt", weights_only=True)["state"]
    assert {float(each["step"]) for each in state.values()} == {run.result["steps"] - 2.0}
    assert "NaN" not in (run.path / "events.jsonl").read_text()


def test_a_gradient_that_vanishes_is_told(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _spoilt(tiny_bert, tmp_path, monkeypatch, Spoil({3}, "0"))
    assert run.result["zero_gradients"] == 1
    told = next(event for event in run.directory.events() if event["event"] == "zero_gradient")
    assert told["step"] == 3
    assert "rows.jsonl:" in told["found"]


def test_a_loss_that_jumps_is_told() -> None:
    told: list[dict[str, Any]] = []
    watch = Watch(lambda kind, **values: told.append({"kind": kind, **values}))
    for step in range(40):
        watch.taken(step, torch.tensor(5.0 if step == 30 else 0.7 + 0.1 * (step % 3)), 1.0, lambda: "8 rows: a.csv:2")
    assert [(event["kind"], event["step"]) for event in told] == [("loss_spike", 30)]
    assert told[0]["found"] == "5 after 0.8 on average; 8 rows: a.csv:2"
    assert watch.counts["loss_spikes"] == 1
    other = Watch()
    other.load(json.loads(json.dumps(watch.state())))
    assert other.state() == watch.state()
    assert other.logged() == watch.logged()


def test_a_model_that_was_saved_wrong_fails_the_run(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.models import save

    original = save.save_model

    def damaging(model: Any, tokenizer: Any, method: Any, folder: Path, base: Path, card: str) -> None:
        original(model, tokenizer, method, folder, base, card)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.bias"] += 0.001
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(save, "save_model", damaging)
    data = write_jsonl(tmp_path / "rows.jsonl", num_rows=80)
    with pytest.raises(tunesmith.RunError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS], run=tmp_path / "run", quiet=True)
    assert caught.value.code == "run.proof"
    assert "logits differ" in str(caught.value)
    documented("run.proof", "tunesmith train rows.jsonl model=MODEL", str(caught.value), {tmp_path / "run": "RUN"})
    proof = json.loads((tmp_path / "run" / "proof.json").read_text())
    assert not proof["proven"]
    assert proof["largest_logit_difference"] == pytest.approx(0.001, rel=1e-2)
    assert not (tmp_path / "run" / "result.json").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/manifest.json"))


def test_data_that_changes_while_it_is_read_is_refused(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, original = write_jsonl(tmp_path / "rows.jsonl", num_rows=80), prepare_data.read_split

    def meddling(*arguments: Any) -> Any:
        with data.open("a") as file:
            file.write('{"text": "one more", "label": "1"}\n')
        return original(*arguments)

    monkeypatch.setattr(prepare_data, "read_split", meddling)
    with pytest.raises(tunesmith.InputError) as caught:
        tunesmith.train(str(data), [f"model={tiny_bert}", *SETTINGS], run=tmp_path / "run", quiet=True)
    assert caught.value.code == "data.changed"
    assert caught.value.problems[0].where == "rows.jsonl"


def test_data_that_changes_while_the_run_goes_on_is_told_and_not_read(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Path
) -> None:
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
    data = tmp_path / "rows.jsonl"
    with acting(monkeypatch, "on_step_begin", 5, lambda: data.write_text("nothing")):
        run = train(tiny_bert, tmp_path / "run")
    assert_same_end(straight, run)
    assert tunesmith.open_run(run).result["data_changed"] == ["rows.jsonl"]
