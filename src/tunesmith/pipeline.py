"""`train(spec)`: from a spec to a trained, evaluated, proven model. Read this first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError, RunError
from tunesmith.models.catalog import check_same_model, hashes_of
from tunesmith.prepare import Prepared, check_tokenizer, prepare
from tunesmith.prepare_data import check_unchanged
from tunesmith.registry import METHODS
from tunesmith.resolve import USED_IN_CLOSED_FORM, total_steps
from tunesmith.runs.changes import SCHEDULE, check_changes, differences
from tunesmith.runs.checkpoints import Checkpoints, newest_checkpoint, read_state, set_aside, step_of
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.environment import describe_environment, peak_memory_bytes
from tunesmith.runs.interruption import Interruption
from tunesmith.runs.lock import LOCK, locked
from tunesmith.runs.processes import Processes, join_processes
from tunesmith.runs.progress import Progress, format_seconds
from tunesmith.spec import RunSpec, TrainSpec

if TYPE_CHECKING:
    from tunesmith.engines.job import Job, Outcome
    from tunesmith.verbs.run import Run


def train(
    source: str | Path | Mapping[str, Any] | RunSpec,
    overrides: Iterable[str] = (),
    *,
    run: str | Path | None = None,
    use_cache: bool = True,
    quiet: bool = False,
) -> Run:
    """Trains what a spec (or a data file, or a mapping) says, into a run directory.

    Started several times at once (`torchrun`, `accelerate launch`), the processes train one model together.

    Raises InputError when spec or data are wrong, before anything is trained; RunError when the run cannot end well.
    """
    from tunesmith.verbs.init import spec_of

    processes = join_processes()
    if not processes.is_first:
        return _follow(processes)
    progress = Progress(quiet)
    spec = spec_of(source, overrides)
    directory = RunDirectory.create(run, spec.task.name)
    interruption = Interruption(directory.path)
    with locked(directory.path), interruption.listening():
        try:
            prepared = prepare(spec, directory.path / "rejected.jsonl", use_cache, processes.count)
            job = build_job(prepared, directory, interruption, progress, processes)
        except InputError:
            _remove_if_empty(directory)
            raise
        directory.write_spec("spec.yaml", spec.model_dump(exclude_unset=True))
        directory.write_json("decisions.json", [vars(decision) for decision in prepared.resolved.decisions])
        directory.write_json("environment.json", describe_environment())
        directory.write_json("data.json", prepared.data.fingerprint)
        if not prepared.files.is_new:
            directory.write_json("model.json", hashes_of(prepared.files.path))
        directory.write_spec("resolved.yaml", prepared.spec.model_dump())  # last: from here on it is a run
        _show(prepared, directory, progress)
        processes.tell((str(directory.path), None, False))
        return run_job(job, prepared, directory, progress)


def resume(path: str | Path, overrides: Iterable[str] = (), *, accept_changes: bool = False, quiet: bool = False) -> Run:
    """Goes on with a run that was stopped, from its newest whole checkpoint, or from the start when there is none.

    With overrides such as `train.epochs=5` or `train.learning_rate=1e-5`, a run that is complete goes on too.
    Raises InputError when the run is complete, or its data, spec or environment has changed; RunError as `train`.
    """
    processes = join_processes()
    if not processes.is_first:
        return _follow(processes)
    directory, progress, overrides = RunDirectory.open(path), Progress(quiet), tuple(overrides)
    interruption = Interruption(directory.path)
    with locked(directory.path) as dead_owner, interruption.listening():
        if directory.is_complete and not overrides:
            problem, fix = "the run is complete", "`tunesmith evaluate` or `tunesmith predict`; or go on for longer: train.epochs=N"
            raise InputError("usage.nothing_to_resume", problem, where=str(directory.path), fix=fix)
        directory.cut_events()
        checkpoint, damaged = _checkpoint(directory, accept_changes)
        spec = directory.spec(overrides)
        origin = read_state(checkpoint, "run_state.json") if checkpoint else {}
        changed = differences(origin.get("spec", directory.spec().model_dump(mode="json")), spec.model_dump(mode="json"))
        asked = tuple(override.partition("=")[0].strip() for override in overrides)
        prepared = prepare(spec, directory.path / "rejected.jsonl", world_size=processes.count)
        now = _environment(prepared)
        check_changes(changed, differences(origin.get("environment", now), now), asked, accept_changes)
        check_unchanged(directory, prepared.data)
        check_same_model(directory.read_json("model.json"), prepared.files.path)
        steps = total_steps(spec, len(prepared.encoded["train"]))
        if directory.is_complete and checkpoint and step_of(checkpoint) >= steps:
            problem, fix = "the run has taken all its steps", f"more than {step_of(checkpoint)} steps: train.epochs=N or train.max_steps=N"
            raise InputError("usage.nothing_to_resume", problem, where=str(directory.path), found=f"{steps} steps", fix=fix)
        if checkpoint and prepared.files.is_new:
            check_tokenizer(checkpoint, prepared.tokenizer)
        for folder in damaged:
            progress.say(f"{folder.name} is incomplete or damaged: not used, and kept as {set_aside(folder).name}")
        progress.say(f"goes on from {checkpoint.name}" if checkpoint else "no checkpoint yet: starts from the beginning")
        directory.add_event(
            "resume", checkpoint=checkpoint.name if checkpoint else None, damaged=[folder.name for folder in damaged], changed=changed,
            dead_owner=dead_owner,
        )  # fmt: skip
        job = build_job(prepared, directory, interruption, progress, processes)
        job.has_new_schedule = any(key in SCHEDULE for key in changed)
        directory.write_spec("resolved.yaml", prepared.spec.model_dump())
        (directory.path / "result.json").unlink(missing_ok=True)
        processes.tell((str(directory.path), checkpoint and checkpoint.name, job.has_new_schedule))
        return run_job(job, prepared, directory, progress, checkpoint)


def _follow(processes: Processes) -> Run:
    """Trains with the first process, which prepares the run and writes all of it down."""
    path, checkpoint, has_new_schedule = processes.tell()
    directory = RunDirectory.open(path)
    interruption = Interruption()
    with interruption.listening():
        prepared = prepare(directory.spec(), world_size=processes.count)
        job = build_job(prepared, directory, interruption, Progress(quiet=True), processes)
        job.has_new_schedule = has_new_schedule
        return run_job(job, prepared, directory, Progress(quiet=True), checkpoint and directory.checkpoints / checkpoint)


def _checkpoint(directory: RunDirectory, accept_changes: bool) -> tuple[Path | None, list[Path]]:
    """The checkpoint to go on from, and those that are damaged; newer ones that cannot be used for want of their best are set aside."""
    checkpoint, damaged = newest_checkpoint(directory.checkpoints, not accept_changes)
    every = Checkpoints(directory.checkpoints).all()
    newer = [path for path in every if checkpoint is not None and step_of(path) > step_of(checkpoint) and path not in damaged]
    return checkpoint, damaged + newer


def _environment(prepared: Prepared) -> dict[str, Any]:
    """What the bits of a run depend on beside its spec and data."""
    return {**describe_environment(), "accelerations": prepared.accelerations, "processes": prepared.plan.world_size}


def build_job(
    prepared: Prepared,
    directory: RunDirectory,
    interruption: Interruption | None = None,
    progress: Progress | None = None,
    processes: Processes = Processes(),  # noqa: B008
) -> Job:
    """What the engine needs."""
    from tunesmith.engines.arguments import training_arguments
    from tunesmith.engines.callbacks import RecordRun
    from tunesmith.engines.job import Job

    spec, encoded = prepared.spec, prepared.encoded
    validation = encoded.get("validation") if spec.train.eval_steps != "none" else None
    limit = spec.train.save_total_limit
    checkpoints = Checkpoints(directory.checkpoints, None if limit == "none" else limit, directory.add_checkpoint)
    arguments = training_arguments(spec, total_steps(spec, len(encoded["train"])), checkpoints.partial)
    shown = progress or Progress(quiet=True)

    def report(kind: str, **values: Any) -> None:
        if not processes.is_first:
            return
        directory.add_event(kind, **values)
        shown.say(f"{kind.replace('_', ' ')} at step {values['step']}: {values['found']}")

    return Job(
        spec,
        prepared.task,
        prepared.model,
        prepared.tokenizer,
        prepared.plan,
        encoded["train"],
        validation,
        arguments,
        prepared.accelerations,
        [RecordRun(directory)] if processes.is_first else [],
        checkpoints=checkpoints,
        interruption=interruption or Interruption(directory.path),
        report=report,
        origin={"spec": spec.model_dump(mode="json"), "environment": _environment(prepared)},
        limits={event["step"]: event["tokens"] for event in directory.events() if event["event"] == "memory"},
        processes=processes,
    )


def run_job(job: Job, prepared: Prepared, directory: RunDirectory, progress: Progress, checkpoint: Path | None = None) -> Run:
    """Fits, saves, proves and evaluates; the run is complete when result.json is written."""
    from tunesmith.verbs.run import Run

    started = time.perf_counter()
    with prepared.accelerated():
        outcome = _fit(job, directory, progress, checkpoint)
    if outcome.stopped_by is not None:
        saved = Checkpoints(directory.checkpoints).all()
        kept = f"{saved[-1].name} was saved" if saved else "there was no checkpoint to save yet"
        raise RunError(
            "run.interrupted", f"{outcome.stopped_by} stopped the run after step {outcome.steps}; {kept}",
            where=str(directory.path), fix=f"tunesmith resume {directory.path}",
        )  # fmt: skip
    if not job.processes.is_first:
        job.processes.tell()
        return Run(directory)
    save_and_prove(prepared, directory)
    with prepared.accelerated():
        results = evaluate_splits(job, prepared, directory, progress)
    result = {
        "split": "test" if "test" in results else next(iter(results), None),
        **{split: values["metrics"] for split, values in results.items()},
        "steps": outcome.steps,
        **outcome.counts,
        "data_changed": prepared.data.opened.changed(),
        "best_checkpoint": outcome.best_checkpoint and Path(outcome.best_checkpoint).name,
        "fit_seconds": round(outcome.seconds, 3),
        "train_seconds": round(time.perf_counter() - started, 3),
        "peak_memory_mb": round(peak_memory_bytes() / 1e6),
    }
    if result["data_changed"]:
        progress.say(f"changed while the run went on, which has what they held before: {', '.join(result['data_changed'])}")
    directory.write_json("result.json", result)
    directory.add_event("end", **result)
    progress.say(f"done in {format_seconds(result['train_seconds'])}: {directory.path}")
    job.processes.tell()
    return Run(directory)


def _fit(job: Job, directory: RunDirectory, progress: Progress, checkpoint: Path | None) -> Outcome:
    from tunesmith.engines.callbacks import ShowTraining
    from tunesmith.engines.trainer import fit

    if METHODS.get(job.spec.method.name).engine == "closed_form":
        return _solve(job, directory, progress)
    steps = total_steps(job.spec, len(job.train))
    done = step_of(checkpoint) if checkpoint else 0
    if job.processes.is_first:
        directory.add_event("start", steps=steps, done=done)
    with progress.activity("training", steps, done) as activity:
        job.callbacks.append(ShowTraining(activity, str(job.spec.train.metric_for_best_model), job.plan.rows_per_step))
        return fit(job, checkpoint)


def _solve(job: Job, directory: RunDirectory, progress: Progress) -> Outcome:
    """Fits in closed form, and says what was decided on the way."""
    from tunesmith.engines.closed_form import fit, num_feature_rows
    from tunesmith.verbs.show import decision_lines

    directory.add_event("start", steps=0, done=0)
    with progress.activity("features", num_feature_rows(job)) as activity:
        job.advance_evaluation = activity.advance
        outcome = fit(job)
    decided = [vars(decision) for decision in outcome.decisions]
    directory.write_json("decisions.json", [*directory.read_json("decisions.json"), *decided])
    for line in decision_lines(outcome.decisions)[1:]:
        progress.say(line.strip())
    return outcome


def save_and_prove(prepared: Prepared, directory: RunDirectory) -> None:
    """Writes model/ and proof.json.

    Raises RunError when the reloaded model computes something else.
    """
    from tunesmith.models.save import save_model, write_card
    from tunesmith.verbs.prove import prove_model

    spec, task = prepared.spec, prepared.task
    head = task.head(spec.task)
    about = {"task": task.summary, "method": prepared.method.summary}
    if "num_labels" in head:
        about["labels"] = ", ".join(head.get("id2label", {}).values()) or "a number"
    heeded = USED_IN_CLOSED_FORM if prepared.method.engine == "closed_form" else TrainSpec.model_fields
    settings = {f"train.{name}": value for name, value in spec.train.model_dump().items() if name in heeded and value not in ("none", {})}
    data = {
        file["name"]: f"{split}, SHA-256 {file['sha256']}" for split, files in prepared.data.fingerprint["files"].items() for file in files
    }
    card = write_card(
        f"{spec.model.name} for {task.name}",
        "" if prepared.files.is_new else spec.model.name,
        prepared.card_code,
        {"What it is": about, "Data": data, "Settings": settings},
        [task.name, prepared.method.name],
    )
    save_model(prepared.model, prepared.tokenizer, prepared.method, directory.model, prepared.files.path, card)
    task.finish(spec.task, prepared.model, prepared.tokenizer, directory.model)
    proof = prove_model(prepared, prepared.card_code, directory.model, head.get("id2label", {}))
    directory.write_json("proof.json", proof)
    if not proof["proven"]:
        fix = "the checkpoints are intact; please report this with proof.json"
        raise RunError(
            "run.proof",
            "the saved model does not compute what was trained",
            where=str(directory.model),
            found="; ".join(proof["problems"]),
            fix=fix,
        )


def evaluate_splits(job: Job, prepared: Prepared, directory: RunDirectory, progress: Progress) -> dict[str, Any]:
    """Evaluates on validation and test rows, and writes eval/SPLIT.json."""
    from tunesmith.verbs.answers import with_answers

    results: dict[str, Any] = {}
    tuned: dict[str, Any] = {}
    for split in ("validation", "test"):
        if split not in prepared.encoded:
            continue
        encoded = prepared.encoded[split]
        with progress.activity(f"evaluating on {split}", len(encoded)) as activity:
            results[split] = job.scorer.evaluate(encoded, tuned, advance=activity.advance)
        if job.task.writes_target:
            results[split] = with_answers(
                results[split], encoded, job.task, prepared.spec.task, job.model, job.tokenizer, str(job.spec.train.precision), progress
            )
        if "thresholds" in results[split] and not tuned:
            tuned = {"thresholds": results[split]["thresholds"]}
            directory.write_json("model/thresholds.json", tuned)
        directory.write_json(f"eval/{split}.json", results[split])
    return results


def _show(prepared: Prepared, directory: RunDirectory, progress: Progress) -> None:
    from tunesmith.verbs.show import decision_lines, row_lines

    for line in [*row_lines(prepared.data), *decision_lines(prepared.resolved.decisions), f"run directory: {directory.path}"]:
        progress.say(line)


def _remove_if_empty(directory: RunDirectory) -> None:
    """Takes away what was made before anything was trained."""
    for name in ("rejected.jsonl", LOCK):
        (directory.path / name).unlink(missing_ok=True)
    for folder in (directory.checkpoints, directory.path / "eval", directory.path):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
