"""What tunesmith relies on in transformers' Trainer and TrainingArguments. Each test says what breaks when it fails."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch
from accelerate import skip_first_batches
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments

from tunesmith.engines.arguments import SPEC_KEYS, WITHOUT_EFFECT, training_arguments
from tunesmith.registry import Decision
from tunesmith.resolve import Resolved
from tunesmith.spec import RunSpec
from tunesmith.strict import load_spec

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 2, "max_steps": 2}
    return TrainingArguments(output_dir=str(folder), **{**settings, **more})


def resolved_spec(**train: Any) -> RunSpec:
    spec = load_spec({"task": "text_classification", "model": "minilm", "data": "a.csv", "method": "full", "train": train})
    decided = {
        "task.problem_type": "single_label_classification",
        "train.learning_rate": 1e-3,
        "train.max_tokens_per_micro_batch": 4096,
        "train.precision": "fp32",
        "train.logging_steps": 5,
        "train.eval_steps": "epoch",
        "train.save_steps": "epoch",
        "train.load_best_model_at_end": True,
        "train.metric_for_best_model": "accuracy",
    }
    given = {f"train.{name}" for name in train}
    return Resolved(spec).decide(Decision(key, value, "") for key, value in decided.items() if key not in given).spec


class Recorded(Trainer):
    """Keeps the loss function's arguments and the losses of the steps."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.given: list[Any] = []
        self.losses: list[float] = []

        def loss_function(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            self.given.append((num_items_in_batch, labels))
            return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / 7

        super().__init__(*positional, compute_loss_func=loss_function, **named)


# arguments


def test_the_fields_that_we_set_or_name_exist(tmp_path: Path) -> None:
    """Otherwise every run ends in a TypeError, or `train.extra` refuses names that mean nothing any more."""
    made = training_arguments(resolved_spec(), 10, tmp_path)
    assert isinstance(made, TrainingArguments)
    assert set(SPEC_KEYS) - set(FIELDS) == set()
    assert set(WITHOUT_EFFECT) - set(FIELDS) == set()


def test_the_settings_of_the_spec_arrive(tmp_path: Path) -> None:
    """Otherwise a setting would silently mean something else upstream."""
    made = training_arguments(
        resolved_spec(learning_rate=3e-4, adam_beta2=0.9, weight_decay=0.5, warmup_steps=0.25, seed=7, save_total_limit="none"),
        10,
        tmp_path,
    )
    found = (made.learning_rate, made.adam_beta2, made.weight_decay, made.warmup_steps, made.seed, made.save_total_limit)
    assert found == (3e-4, 0.9, 0.5, 3, 7, None)
    assert made.greater_is_better is True
    assert made.gradient_accumulation_steps == 1
    assert made.get_warmup_steps(10) == 3


def test_the_default_optimizer_is_fused_adamw(tmp_path: Path) -> None:
    """The documented optimizer and the measured times of a step rest on it."""
    assert str(getattr(FIELDS["optim"].default, "value", FIELDS["optim"].default)) == "adamw_torch_fused"


def test_nothing_reports_to_the_outside_by_default(tmp_path: Path) -> None:
    """Offline and without telemetry is a promise."""
    assert arguments(tmp_path).report_to == []


def test_weight_decay_spares_norms_and_biases(model: Any, tmp_path: Path) -> None:
    """The spec's documentation of `weight_decay` says so."""
    decayed = Trainer(model=model, args=arguments(tmp_path)).get_decay_parameter_names(model)
    assert {name for name, _ in model.named_parameters()} - set(decayed) == {
        name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name
    }


# the loss


def test_our_weight_reaches_the_loss_function_and_the_loss_is_not_rescaled(model: Any, rows: Any, tmp_path: Path) -> None:
    """The sum of micro-batch gradients is that of the whole step only if Trainer neither drops the divisor nor divides again."""
    trainer = Recorded(model=model, args=arguments(tmp_path, gradient_accumulation_steps=4), train_dataset=rows)
    trainer.model_accepts_loss_kwargs = False
    trainer.current_gradient_accumulation_steps = 4
    model.eval()
    batch = {name: torch.stack([rows[index][name] for index in (0, 1)]) for name in ("input_ids", "labels")}
    model.train = lambda mode=True: model  # no dropout: the two losses are the same sum
    returned = trainer.training_step(model, dict(batch), 123.0)
    assert trainer.given[0][0] == 123.0
    expected = torch.nn.functional.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="sum") / 7
    torch.testing.assert_close(returned, expected.detach())
    gradient = model.classifier.bias.grad.clone()
    model.zero_grad()
    expected.backward()
    torch.testing.assert_close(gradient, model.classifier.bias.grad)


def test_labels_are_kept_from_a_model_that_a_loss_function_serves(model: Any, rows: Any, tmp_path: Path) -> None:
    """Otherwise each forward would compute a second loss, and label smoothing would be Trainer's instead of the task's."""
    trainer = Recorded(model=model, args=arguments(tmp_path, label_smoothing_factor=0.1), train_dataset=rows)
    seen: list[set[str]] = []
    model.register_forward_pre_hook(lambda module, positional, named: seen.append(set(named)), with_kwargs=True)
    trainer.train()
    assert all("labels" not in names for names in seen)
    assert len(seen) == len(trainer.given) == 2


def test_the_arguments_of_what_we_override() -> None:
    """Overrides that upstream calls with other arguments fail in the middle of a run."""
    assert list(inspect.signature(Trainer.training_step).parameters) == ["self", "model", "inputs", "num_items_in_batch"]
    assert list(inspect.signature(Trainer.evaluate).parameters) == ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]
    assert list(inspect.signature(Trainer.floating_point_ops).parameters) == ["self", "inputs"]
    assert list(inspect.signature(Trainer.get_train_dataloader).parameters) == ["self"]


# loaders


class Fetches(Dataset):
    """Hands a whole batch of indices on."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


class Epochs(Sampler):
    """Remembers its epochs; epoch e gives batches of e * 100 + 0..3."""

    def __init__(self) -> None:
        self.epoch = -1
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        yield from ([self.epoch * 100 + step] for step in range(4))


class EpochLoader(DataLoader):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def loader(sampler: Epochs) -> EpochLoader:
    return EpochLoader(Fetches(), batch_sampler=sampler, collate_fn=lambda numbers: numbers)


def test_a_loader_fetches_whole_batches() -> None:
    """Our data set has no __getitem__: a step of the plan is handed to the collator whole."""
    sampler = Epochs()
    sampler.set_epoch(3)
    assert list(loader(sampler)) == [[300], [301], [302], [303]]


class Stepwise(Trainer):
    """Trains nothing; keeps the batches."""

    def __init__(self, sampler: Epochs, model: Any, args: TrainingArguments) -> None:
        super().__init__(model=model, args=args, train_dataset=Fetches())
        self.sampler, self.batches = sampler, []

    def get_train_dataloader(self) -> DataLoader:
        return loader(self.sampler)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.batches.append(inputs[0])
        return torch.zeros(())

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


def test_trainer_tells_an_unprepared_loader_its_epoch_and_takes_batches_as_they_are(model: Any, tmp_path: Path) -> None:
    """Otherwise every epoch has the order of the first."""
    sampler = Epochs()
    Stepwise(sampler, model, arguments(tmp_path, max_steps=-1, num_train_epochs=2)).train()
    assert sampler.told == [0, 1]


def test_trainer_consumes_the_loader_in_order(model: Any, tmp_path: Path) -> None:
    """A batch of the loader is one optimizer step of the plan."""
    trainer = Stepwise(Epochs(), model, arguments(tmp_path, max_steps=6))
    trainer.train()
    assert trainer.batches == [0, 1, 2, 3, 100, 101]


def test_a_resumed_trainer_tells_the_epoch_to_the_sampler_behind_skipped_batches(model: Any, tmp_path: Path) -> None:
    """A run resumed in the middle of an epoch would see the rows of epoch 0 again."""
    first = Stepwise(Epochs(), model, arguments(tmp_path, max_steps=6, save_strategy="steps", save_steps=6))
    first.train()
    resumed = Stepwise(Epochs(), model, arguments(tmp_path, max_steps=9))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.batches == [102, 103, 200]


def test_skipping_batches_keeps_the_sampler_reachable() -> None:
    """The skipped loader is a plain DataLoader: only `batch_sampler.batch_sampler` leads to ours."""
    sampler = Epochs()
    skipped = skip_first_batches(loader(sampler), 2)
    assert skipped.batch_sampler.batch_sampler is sampler
    sampler.set_epoch(1)
    assert list(skipped) == [[102], [103]]


# precision


def test_bf16_wraps_the_forward_pass_and_unwrapping_undoes_it(model: Any, rows: Any, tmp_path: Path) -> None:
    """A model handed back inside autocast would be proven, evaluated and used in bf16."""
    # Columns are kept: what Trainer drops is not the subject here.
    trainer = Trainer(model=model, args=arguments(tmp_path, bf16=True, remove_unused_columns=False), train_dataset=rows)
    inputs = {"input_ids": rows[0]["input_ids"][None]}
    seen: list[torch.dtype] = []
    model.classifier.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    seen.clear()
    with torch.inference_mode():
        assert model.eval()(**inputs).logits.dtype == torch.float32
    assert seen == [torch.float32]


# callbacks


class Worsens(TrainerCallback):
    """Early stopping sees a metric that gets worse and worse."""

    def __init__(self, score: float) -> None:
        self.score = score

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        self.score -= 1
        metrics["eval_accuracy"] = self.score


def early_stopping_trainer(model: Any, rows: Any, folder: Path, max_steps: int, score: float) -> Trainer:
    settings = arguments(
        folder,
        max_steps=max_steps,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
    )
    return Trainer(model=model, args=settings, train_dataset=rows, eval_dataset=rows, callbacks=[Worsens(score), EarlyStoppingCallback(3)])


def test_early_stopping_goes_on_counting_after_a_resume(model: Any, rows: Any, tmp_path: Path) -> None:
    """A resumed run would wait its whole patience again."""
    first = early_stopping_trainer(model, rows, tmp_path, 3, 1.0)
    first.train()
    assert first.state.global_step == 3
    resumed = early_stopping_trainer(model, rows, tmp_path, 20, -2.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    # Steps 2 and 3 were worse than step 1; step 4 is the third.
    assert resumed.state.global_step == 4


def test_a_run_that_was_stopped_goes_on_although_its_control_is_restored(model: Any, rows: Any, tmp_path: Path) -> None:
    """The checkpoint of a stopped run says that training should stop; resumed with callback states, it would stop at once."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
            control.should_save = control.should_training_stop = True

    settings = {"max_steps": 4, "save_strategy": "no", "restore_callback_states_from_checkpoint": True}
    Trainer(model=model, args=arguments(tmp_path, **settings), train_dataset=rows, callbacks=[Stop()]).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    resumed = Trainer(model=model, args=arguments(tmp_path, **settings), train_dataset=rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 4
