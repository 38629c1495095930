"""`check`: everything that can be known before training; trains nothing that is kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.encode import training_key
from tunesmith.models.language_model import decode_tokens
from tunesmith.models.load import count_parameters
from tunesmith.pipeline import build_job
from tunesmith.prepare import Prepared, prepare, speed_facts
from tunesmith.registry import Decision
from tunesmith.resolve import total_steps
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.environment import peak_memory_bytes
from tunesmith.runs.progress import Progress, format_seconds
from tunesmith.spec import RunSpec
from tunesmith.verbs.init import spec_of
from tunesmith.verbs.show import decision_lines, quantile_line, trained_lines

NUM_TIMED_STEPS = 8
SHOWN_ROWS = 3
SHOWN_TOKENS = 40
SHOWN_LABELS = 30
FORWARD_SHARE = 1 / 3
"""Of the time of a training step: a forward pass without gradients."""
BYTES_PER_WEIGHT = 4
"""Of a trained weight; the best checkpoint is read beside the model at the end."""


def check(
    source: str | Path | Mapping[str, Any] | RunSpec,
    overrides: Iterable[str] = (),
    *,
    use_cache: bool = True,
    measure: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """What a spec means for its data: a report as plain values.

    `measure=False` leaves out the timed steps, and with them the estimates of time and memory.
    Raises InputError when spec or data are wrong.
    """
    prepared = prepare(spec_of(source, overrides), use_cache=use_cache)
    trainable, parameters = count_parameters(prepared.model)
    report: dict[str, Any] = {
        "data": describe_data(prepared),
        "lengths": {split: _lengths(prepared, split) for split in prepared.encoded},
        "decisions": [vars(decision) for decision in prepared.resolved.decisions],
        "rows": [show_row(prepared, index) for index in range(min(SHOWN_ROWS, len(prepared.encoded["train"])))],
        "parameters": {"trainable": trainable, "all": parameters},
        "steps": 0 if prepared.method.engine == "closed_form" else total_steps(prepared.spec, len(prepared.encoded["train"])),
        "padding": padding_share(prepared),
    }
    report["estimate"] = estimate(prepared, Progress(quiet)) if measure else None
    return report


def describe_data(prepared: Prepared) -> dict[str, Any]:
    """Files, columns, label distribution, duplicates and rejected rows."""
    data, task = prepared.data, prepared.task
    files = [
        {
            "split": split,
            "name": origin.name,
            "format": origin.dialect.format,
            "encoding": origin.dialect.encoding,
            "columns": list(origin.dialect.names),
        }
        for split, origins in data.opened.origins.items()
        for origin in origins
    ]
    distribution: dict[str, int] = {}
    if task.distribution is not None:
        distribution = task.distribution(prepared.spec.task, data.facts.label_counts)
    elif "label" in data.rows["train"].dataset.column_names:
        names, _ = task.stratify(prepared.spec.task, data.rows["train"].dataset["label"])
        labels, counts = np.unique(names, return_counts=True)
        distribution = dict(sorted(zip(labels.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]))
    return {
        "files": files,
        "rows": {split: len(rows) for split, rows in data.rows.items()},
        "columns": data.columns,
        "labels": distribution,
        "duplicates": data.num_duplicates,
        "rejected": data.findings.counts if data.findings.num_rejected else {},
        "left_out": data.findings.num_left_out,
    }


def _lengths(prepared: Prepared, split: str) -> dict[str, Any]:
    encoded = prepared.encoded[split]
    lengths = {"quantiles": quantile_line(encoded.full_lengths.tolist()), "truncated": encoded.num_truncated, "rows": len(encoded)}
    if prepared.task.join is not None:
        lengths["windowed"] = int((np.bincount(encoded.row) > 1).sum())
    if encoded.label_lengths is not None and encoded.full_label_lengths is not None:
        cut = int((encoded.full_label_lengths > encoded.label_lengths).sum())
        lengths["targets"] = {"quantiles": quantile_line(encoded.full_label_lengths.tolist()), "truncated": cut}
    if prepared.task.per_token and encoded.draw is None:
        labels = encoded.dataset.data.column("labels")
        lengths["tokens"] = int(encoded.lengths.sum())
        lengths["trained_tokens"] = sum(int((chunk.flatten().to_numpy(zero_copy_only=False) >= 0).sum()) for chunk in labels.chunks)
    return lengths


def padding_share(prepared: Prepared) -> float:
    """Share of the tokens of an epoch that is padding."""
    plan = prepared.plan
    padded = sum(plan.num_computed(part) for step in plan.batches(0) for part in step)
    return 1 - int(plan.lengths.sum()) / padded


def show_row(prepared: Prepared, index: int) -> dict[str, Any]:
    """A training row as the model sees it: place, tokens, ids and label, or which tokens are trained."""
    encoded, tokenizer = prepared.encoded["train"], prepared.tokenizer
    row = {name: values[0] for name, values in encoded.examples([index], training_key(prepared.spec.train.seed, 0)).items()}
    special = set(tokenizer.all_special_ids)
    shown = {
        "place": encoded.place(index),
        "ids": row["input_ids"],
        "tokens": tokenizer.convert_ids_to_tokens(row["input_ids"]),
        "special": [position for position, token in enumerate(row["input_ids"]) if token in special],
        "cut": int(encoded.full_lengths[index] - encoded.lengths[index]),
    }
    if prepared.task.learnt is not None:
        return {**shown, "pieces": decode_tokens(tokenizer, row["input_ids"]), "trained": prepared.task.learnt(prepared.spec.task, row)}
    if prepared.task.per_token:
        trained = [label >= 0 for label in row["labels"]]
        names = prepared.task.head(prepared.spec.task).get("id2label", {})
        pieces = decode_tokens(tokenizer, row["input_ids"])
        named = [piece + (f"/{names[label]}" if label in names else "") for piece, label in zip(pieces, row["labels"], strict=True)]
        return {**shown, "pieces": named, "trained": trained}
    if prepared.task.writes_target:
        return {**shown, "pieces": decode_tokens(tokenizer, row["input_ids"]), "target": decode_tokens(tokenizer, row["labels"])}
    label = encoded.sources([index]).get("label", [None])[0]
    return {**shown, "label": label, "encoded_label": row["labels"], "segments": row.get("token_type_ids")}


def estimate(prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """Seconds and memory of the whole run, from real steps on the real rows; the model is changed by them, and discarded.

    The steps timed are spread over the sizes of an epoch's steps, the largest among them; seconds are fitted as a + b x tokens, and those
    of later epochs by themselves where features of frozen blocks are kept.
    """
    from tunesmith.engines.trainer import time_steps
    from tunesmith.speed.frozen_features import feature_bytes

    plan, spec = prepared.plan, prepared.spec
    steps = plan.batches(0)
    drawn = plan.drawn(0)
    sizes = np.asarray([sum(plan.num_computed(part) for part in step) for step in steps])
    order = np.argsort(sizes, kind="stable")
    chosen = [int(order[position]) for position in np.linspace(0, len(order) - 1, min(NUM_TIMED_STEPS, len(order))).astype(int)]
    is_kept = "frozen_features" in prepared.accelerations
    with tempfile.TemporaryDirectory(prefix="tunesmith-check-") as folder:
        directory = RunDirectory.create(Path(folder) / "run", prepared.task.name)
        with progress.activity("timing steps", len(chosen) * (1 + is_kept) + 1) as activity:
            # The largest step first: it warms up what the others use.
            started = time.perf_counter()
            timed = [(steps[index], drawn[index]) for index in [chosen[-1], *chosen, *(chosen if is_kept else [])]]
            with prepared.accelerated():
                seconds = np.asarray(time_steps(build_job(prepared, directory), timed, activity.advance))
            measured = time.perf_counter() - started
    # Where features are kept, a step has them from its second time on; the largest came first.
    first = seconds[[*range(1, len(chosen)), 0]] if is_kept else seconds[1:]
    slope, fixed = _fit_line(sizes[chosen], first)
    later_slope, later_fixed = _fit_line(sizes[chosen], seconds[-len(chosen) :])
    # A solver reads the rows once; the steps timed are forward passes and little more.
    solved = prepared.method.engine == "closed_form"
    epochs = 1.0 if solved else total_steps(spec, len(prepared.encoded["train"])) / len(steps)
    training = min(epochs, 1) * float((fixed + slope * sizes).sum()) + max(epochs - 1, 0) * float((later_fixed + later_slope * sizes).sum())
    tokens = {split: int(encoded.sizes.sum()) for split, encoded in prepared.encoded.items() if split != "train"}
    evaluations = {"validation": _num_evaluations(prepared, epochs) + 1, "test": 1}
    evaluating = sum(count * evaluations[split] for split, count in tokens.items()) * slope * FORWARD_SHARE
    best = count_parameters(prepared.model)[0] * BYTES_PER_WEIGHT if spec.train.load_best_model_at_end and not solved else 0
    kept = feature_bytes(speed_facts(prepared.model, spec, prepared.encoded["train"])) if is_kept else 0
    return {
        "seconds": round(training + evaluating, 1),
        "training_seconds": round(training, 1),
        "evaluation_seconds": round(evaluating, 1),
        "peak_memory_mb": round((peak_memory_bytes() + best + kept) / 1e6),
        "timed_steps": len(chosen),
        "measured_in_seconds": round(measured, 1),
    }


def _fit_line(sizes: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of seconds over sizes, neither below zero."""
    if len(sizes) < 3 or np.ptp(sizes) == 0:
        return float(seconds.sum() / sizes.sum()), 0.0
    slope, fixed = np.polyfit(sizes, seconds, 1)
    if slope <= 0 or fixed < 0:
        return float(seconds.sum() / sizes.sum()), 0.0
    return float(slope), float(fixed)


def _num_evaluations(prepared: Prepared, epochs: float) -> int:
    every = prepared.spec.train.eval_steps
    if every == "none":
        return 0
    steps = total_steps(prepared.spec, len(prepared.encoded["train"]))
    return steps // every if isinstance(every, int) else max(int(np.ceil(epochs)), 1)


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    data = report["data"]
    lines = ["data:"]
    for file in data["files"]:
        lines.append(f"  {file['split']}: {file['name']}, {file['format']}, {file['encoding']}, columns {', '.join(file['columns'])}")
    rows = ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())
    lines.append(f"  rows: {rows}; {data['duplicates']:,} stand more than once in the training files")
    lines += [f"  left out as the spec says: {count:,} ({reason})" for reason, count in data["left_out"].items()]
    shown = [f"{label} {count:,}" for label, count in list(data["labels"].items())[:SHOWN_LABELS]]
    if shown:
        lines.append(f"  training labels: {', '.join(shown)}{', ...' if len(data['labels']) > SHOWN_LABELS else ''}")
    if data["rejected"]:
        lines.append("  left out: " + ", ".join(f"{count} {code}" for code, count in data["rejected"].items()))
    lines.append("lengths in tokens:")
    for split, lengths in report["lengths"].items():
        share = lengths["truncated"] / lengths["rows"]
        lines.append(f"  {split}: {lengths['quantiles']}; cut {lengths['truncated']:,} of {lengths['rows']:,} ({share:.1%})")
        if "targets" in lengths:
            targets = lengths["targets"]
            lost = f"cut {targets['truncated']:,} ({targets['truncated'] / lengths['rows']:.1%}; their end is not learnt)"
            lines.append(f"    targets: {targets['quantiles']}; {lost if targets['truncated'] else 'none cut'}")
        if lengths.get("windowed"):
            lines.append(f"    {lengths['windowed']:,} rows are longer than task.max_length, and become several windows")
        if "tokens" in lengths:
            tokens, trained = lengths["tokens"], lengths["trained_tokens"]
            lines.append(f"    {trained:,} of {tokens:,} tokens are trained ({trained / tokens:.1%})")
    lines += decision_lines(Decision(**decision) for decision in report["decisions"])
    lines.append("rows as the model sees them:")
    for row in report["rows"]:
        lines += _row_lines(row)
    parameters = report["parameters"]
    lines.append(
        f"trainable parameters: {parameters['trainable']:,} of {parameters['all']:,} ({parameters['trainable'] / parameters['all']:.2%})"
    )
    lines.append(f"steps: {report['steps']:,}; padding is {report['padding']:.1%} of all tokens computed")
    if report["estimate"] is not None:
        found = report["estimate"]
        lines.append(
            f"estimate: {format_seconds(found['seconds'])} (training {format_seconds(found['training_seconds'])}, evaluation "
            f"{format_seconds(found['evaluation_seconds'])}), {found['peak_memory_mb']:,} MB; from {found['timed_steps']} timed steps"
        )
    return lines


def _row_lines(row: dict[str, Any]) -> list[str]:
    def more(tokens: list[str]) -> str:
        return f" ... {len(tokens) - SHOWN_TOKENS} more" if len(tokens) > SHOWN_TOKENS else ""

    cut = f"   {row['cut']} tokens cut" if row["cut"] else ""
    if "target" in row:
        texts = (("source", row["pieces"]), ("target", row["target"]))
        return [f"  {row['place']}{cut}", *(f"    {name} {'|'.join(pieces[:SHOWN_TOKENS])}{more(pieces)}" for name, pieces in texts)]
    if "trained" in row:
        return [f"  {row['place']}{cut}", *(f"    {line}" for line in trained_lines(row["pieces"], row["trained"]))]
    special = set(row["special"])
    tokens = [f"<{token}>" if position in special else token for position, token in enumerate(row["tokens"])]
    label = f"   label {', '.join(row['label'])} -> {row['encoded_label']}" if row["label"] is not None else ""
    lines = [f"  {row['place']}{label}{cut}"]
    lines.append("    tokens " + " ".join(tokens[:SHOWN_TOKENS]) + more(tokens))
    lines.append("    ids    " + " ".join(map(str, row["ids"][:SHOWN_TOKENS])) + more(tokens))
    if row["segments"] is not None:
        for name, segment in (("second", 1), ("third", 2)):
            if segment in row["segments"]:
                lines.append(f"    the {name} text begins at token {row['segments'].index(segment)}")
    return lines
