"""A finished run as an object: its metrics, and its model to evaluate and to predict with."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.encode import Encoded, Examples, JoinedRows, encode_rows
from tunesmith.data.findings import Findings
from tunesmith.data.lint import lint_labels
from tunesmith.data.origins import open_sources
from tunesmith.data.rows import Rows, decide_columns, read_split
from tunesmith.data.tables import keep_table
from tunesmith.engines.scoring import Scorer
from tunesmith.errors import InputError
from tunesmith.registry import METHODS, TASKS, Task
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.progress import Progress
from tunesmith.spec import RunSpec
from tunesmith.spec_file import Source
from tunesmith.strict import apply_override, validate
from tunesmith.verbs.answers import answer_rows, cut_tokens, with_answers
from tunesmith.verbs.init import data_spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SETTINGS_OF_WRITING = ("task.generation.", "task.metrics=", "task.num_generated=")


def open_run(path: str | Path) -> Run:
    """The run in a directory.

    Raises InputError when it is none.
    """
    return Run(RunDirectory.open(path))


class Run:
    """A run directory with a model."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._accelerations: dict[int, list[str]] = {}
        """What was chosen for the run's own model and its base, by identity: the run holds both."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @cached_property
    def spec(self) -> RunSpec:
        """The resolved spec."""
        return self.directory.spec()

    @property
    def result(self) -> dict[str, Any]:
        """What result.json says: metrics by split, steps, seconds."""
        result: dict[str, Any] | None = self.directory.read_json("result.json")
        if result is None:
            raise InputError("usage.no_such_run", "the run is not complete", where=str(self.path), fix=f"tunesmith resume {self.path}")
        return result

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics on the test set, or on the validation set when there is no test set."""
        split = self.result["split"]
        return dict(self.result[split]) if split else {}

    @property
    def train_seconds(self) -> float:
        """Seconds of training, with evaluation, saving and proof."""
        return float(self.result["train_seconds"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The saved tokenizer."""
        from tunesmith.models.load import load_tokenizer

        tokenizer = load_tokenizer(self.directory.model)
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The saved model, in eval mode."""
        from tunesmith.models.catalog import check_same_model, local_folder
        from tunesmith.models.load import base_of, load_trained
        from tunesmith.models.placement import place

        _ = self.result
        if (base := base_of(self.directory.model)) and (folder := local_folder(base)):
            check_same_model(self.directory.read_json("model.json"), folder)
        quantization = METHODS.get(self.spec.method.name).quantization(self.spec.method)
        model = load_trained(self.directory.model, self._task.auto_model, quantization)
        place(model)
        return model

    @property
    def _task(self) -> Task:
        return TASKS.get(self.spec.task.name)

    @property
    def _tuned(self) -> dict[str, Any]:
        """What was tuned on validation rows, such as thresholds."""
        return self.directory.read_json("model/thresholds.json") or {}

    def _accelerated(self, model: Any) -> AbstractContextManager[None]:
        """The model with what makes it faster, while it lasts."""
        from tunesmith.prepare import speed_facts
        from tunesmith.speed.choose import accelerated, choose

        facts = speed_facts(model, self.spec)
        if id(model) not in self._accelerations:
            self._accelerations[id(model)] = choose(facts, self.spec.speed.off)[0]
        return accelerated(facts, self._accelerations[id(model)])

    def _scorer(self, model: Any = None) -> Scorer:
        return Scorer(model or self.model, self._task, self.spec.task, int(self.tokenizer.pad_token_id), self.spec.train)

    @property
    def base(self) -> Path:
        """The folder of the model that training started from.

        Raises InputError when it is gone, or no longer what it was then.
        """
        from tunesmith.models.catalog import check_same_model, find_model

        folder = find_model(self.spec.model).path
        check_same_model(self.directory.read_json("model.json"), folder)
        return folder

    @cached_property
    def base_model(self) -> Any:
        """The model that training started from, in eval mode, with the run's tokenizer in mind."""
        import transformers

        from tunesmith.models.load import load_trained, take_generation_config
        from tunesmith.models.placement import place

        transformers.set_seed(self.spec.train.seed)  # rows of new tokens are drawn as in training
        quantization = METHODS.get(self.spec.method.name).quantization(self.spec.method)
        model = load_trained(self.base, self._task.auto_model, quantization)
        if len(self.tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(self.tokenizer))
        take_generation_config(model, self.directory.model)
        place(model)
        return model

    def evaluate(self, data: Any = None, *, overrides: Sequence[str] = (), compare: bool = False, quiet: bool = False) -> dict[str, Any]:
        """Metrics, intervals and details on `data` (a path, several, a table); by default on the run's test set, else its validation set.

        A task that writes also writes answers, whose metrics and first samples are among the details; `overrides` change how, for this
        once (`task.generation.num_beams=4`). With `compare` the same is computed for the model that training started from, under `base`.
        Raises InputError when the data is wrong, or is not what the run was trained with.
        """
        if compare and self._task.prompt is None and not self._task.loader:
            problem = "the model that training started from has no head for this task, so there is nothing to compare with"
            raise InputError("usage.argument", problem, found=self._task.name, fix="leave out --compare")
        if overrides:
            return self._with(overrides).evaluate(data, compare=compare, quiet=quiet)
        progress = Progress(quiet)
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
            rows = self.held_rows(("test", "validation")) if data is None else self._labelled_rows(keep_table(data), Path(work))
            encoded = self.encode(rows, Path(work))
            result = self._evaluated(encoded, self.model, data is None, progress)
            if compare:
                result["base"] = self._evaluated(encoded, self.base_model, data is None, progress)
        return {"split": rows.split, **result}

    def _with(self, overrides: Sequence[str]) -> Run:
        """This run with other settings of writing. Raises InputError when others are named, or values are wrong."""
        read = Source(self.spec.model_dump(), "the run's spec", self.path)
        for override in overrides:
            if not override.startswith(SETTINGS_OF_WRITING):
                fix = f"{', '.join(SETTINGS_OF_WRITING)}...; others are what the run was trained with"
                raise InputError("usage.argument", "this is no setting of writing", found=override, fix=fix)
            apply_override(read, override)
        other = copy.copy(self)
        other.__dict__["spec"] = validate(read)
        return other

    def merge(self, out: str | Path, *, dtype: str = "fp32", quiet: bool = False) -> dict[str, Any]:
        """`tunesmith.verbs.merge.merge` of this run: adapters and base as one proven model in `out`; returns the proof."""
        from tunesmith.verbs.merge import merge

        return merge(self, out, dtype=dtype, quiet=quiet)

    def encode(self, rows: Rows, work: Path, task: Task | None = None) -> Encoded:
        """Rows as the model reads them, under `work`. Raises InputError with what cannot be encoded."""
        section: Any = self.spec.task
        encoded = encode_rows(
            rows, b"", task or self._task, section, self.tokenizer, (task or self._task).longest(section), work, use_cache=False
        )
        findings = Findings()
        for row, fault in encoded.faults:
            findings.add_fault(fault, rows.place(row), rows.dataset[row])
        findings.raise_if_any()
        return encoded

    def _evaluated(self, encoded: Encoded, model: Any, is_own: bool, progress: Progress) -> dict[str, Any]:
        # The thresholds of several labels were tuned on the validation rows: those measure themselves anew, as in training.
        tuned = {} if is_own and encoded.rows.split == "validation" else self._tuned
        with progress.activity(f"evaluating on {len(encoded):,} rows", len(encoded)) as activity, self._accelerated(model):
            result = self._scorer(model).evaluate(encoded, tuned, advance=activity.advance)
        section: Any = self.spec.task
        if self._task.prompt is None or not getattr(section, "num_generated", 0):
            return result
        return with_answers(result, encoded, self._task, section, model, self.tokenizer, str(self.spec.train.precision), progress)

    def held_rows(self, splits: Sequence[str] = ("validation", "test", "train")) -> Rows:
        """The run's own rows of the first of these splits that it has."""
        from tunesmith.prepare_data import check_unchanged, prepare_data

        data = prepare_data(self.spec)
        check_unchanged(self.directory, data)
        for split in splits:
            if split in data.rows:
                self._work = data.work
                return data.rows[split]
        raise InputError(
            "data.no_such_file", "the run has neither test nor validation rows", fix="name a file: tunesmith evaluate RUN --data FILE"
        )

    def _labelled_rows(self, source: str | list[str], work: Path) -> Rows:
        rows, findings = self._read(source, self._task, work)
        lint_labels(rows, self._task, self.spec.task, findings)
        findings.raise_if_any()
        return rows

    def _read(self, source: str | list[str], task: Task, work: Path) -> tuple[Rows, Findings]:
        all_columns: Any = self.spec.data.columns
        columns = {role.name: all_columns[role.name] for role in task.roles if role.name in all_columns}
        spec = data_spec(source, self.spec.data)
        opened = open_sources(spec, task.running_text)
        needed = [role.name for role in task.roles if role.required] or list(columns)
        if task.read_input is not None and not {columns[name] for name in needed if name in columns} <= set(opened.names):
            # questions alone need not come in the columns of whole conversations
            chosen, _ = decide_columns(opened, spec.model_copy(update={"columns": "auto"}), task.roles)
        else:
            used = [role for role in task.roles if role.name in columns and (role.kind != "name" or columns[role.name] in opened.names)]
            # what has the run's name for it, or else is called what it is
            names = [(role.name, columns[role.name]) for role in used]
            columns = {role: column if column in opened.names or role not in opened.names else role for role, column in names}
            chosen, _ = decide_columns(opened, spec.model_copy(update={"columns": columns}), used)
        findings = Findings()
        rows = read_split("train", opened.origins["train"], chosen, task, self.spec.task, work, findings)
        rows.split = "data"
        return rows, findings

    @property
    def reads_texts(self) -> bool:
        """Whether a row to predict may be a text alone."""
        return bool({"text", "prompt"} & {role.name for role in self._input_task.roles}) and "pair" not in self.spec.data.columns

    @property
    def _input_task(self) -> Task:
        """The task as prediction reads rows: without their labels or answers."""
        task = self._task
        roles = tuple(role for role in task.roles if role.kind != "label")
        labels = {"label", *(role.name for role in task.roles if role.kind == "label")}
        canonical = {name: kind for name, kind in task.canonical.items() if name not in labels}
        fields = {"roles": roles, "canonical": canonical, "read": task.read_input or task.read, **task.for_prediction}
        return replace(task, **fields)

    def predict(self, rows: str | Sequence[Any], *, quiet: bool = True) -> list[dict[str, Any]]:
        """One prediction a row, in their order: `{text, label, score, scores}`, `{text, labels, scores}` or `{text, value}`; for tokens
        `{text, tokens, entities}` or `{text, tokens, tags, tag_scores}`; for vectors `{text, embedding}`, or `{text, pair, score}` of two;
        for questions `{question, answer, start, end, score}`.

        A row is a text, (text, pair), (question, context), a list of tokens, or a mapping with these. Where the task writes, a row is a
        text (what the user says, or what is to be written on), a list of messages, or a mapping as in a data file, and a prediction has
        `answer`, `finished` and `num_tokens` beside `messages` or `text`. One of a row that is longer than the model may read has
        `cut_tokens`, how many it did not read.
        """
        import datasets

        listed = [rows] if isinstance(rows, (str, dict)) else list(rows)
        plain = [self._plain_row(row, index) for index, row in enumerate(listed)]
        if not plain:
            return []
        for index, row in enumerate(plain):
            if row.keys() != plain[0].keys():
                found = f"{' and '.join(row)}; row:1 has {' and '.join(plain[0])}"
                fix = "predict those that hold the same together"
                raise InputError("data.column_type", "the rows hold different things", where=f"row:{index + 1}", found=found, fix=fix)
        columns = {name: [row[name] for row in plain] for name in plain[0]}
        dataset = datasets.Dataset.from_dict({**columns, "file": [0] * len(plain), "line": list(range(1, len(plain) + 1))})
        return list(self._predicted(Rows("data", dataset, ["row"]), quiet))

    def _plain_row(self, row: Any, index: int) -> dict[str, Any]:
        """The canonical row that a value means."""
        task, where = self._input_task, f"row:{index + 1}"
        if self._task.prompt is not None or self._task.read_input is not None:
            names = [role.name for role in task.roles]
            by_kind = names[0] if isinstance(row, list) else next((name for name in ("prompt", "text") if name in names), names[0])
            values = row if isinstance(row, dict) else dict(zip(names, row, strict=False)) if isinstance(row, tuple) else {by_kind: row}
            if isinstance(row, tuple) and len(row) > len(names):
                raise _wrong_shape(names, where, row)
            columns = {name: name for name in names if name in values}
        else:
            names = ["text"] + (["pair"] if "pair" in self.spec.data.columns else [])
            listed = [row] if isinstance(row, str) else row
            if len(listed) != len(names) and not isinstance(row, dict):
                raise _wrong_shape(names, where, row)
            values = row if isinstance(row, dict) else dict(zip(names, listed, strict=True))
            columns = {name: name for name in names}
        for found in task.read(self.spec.task, columns, values):
            if isinstance(found, dict):
                return found
            code, problem, shown, _ = found
            raise InputError(code, problem, where=where, found=shown, fix=f"a row is {' and '.join(names)}")
        raise InputError("data.empty_text", "the row holds nothing", where=where, found=repr(row)[:100])

    def predict_file(self, source: str, *, skip: int = 0, quiet: bool = False) -> Iterator[dict[str, Any]]:
        """Predictions for every row of a file but the first `skip`, in order, a few thousand rows at a time.

        Raises InputError with every row that cannot be read, before anything is predicted.
        """
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
            rows, findings = self._read(source, self._input_task, Path(work))
            findings.raise_if_any()
            yield from self._predicted(rows.select(range(min(skip, len(rows)), len(rows))), quiet, skip)

    def _predicted(self, rows: Rows, quiet: bool, first_row: int = 0) -> Iterator[dict[str, Any]]:
        """Predictions in the order of the rows."""
        with Progress(quiet).activity("predicting", len(rows)) as activity:
            if self._task.prompt is None:
                yield from in_order(self._scored(rows, activity.advance))
                return
            section, precision = self.spec.task, str(self.spec.train.precision)
            numbered = answer_rows(rows, self._task, section, self.model, self.tokenizer, precision, first_row, activity.advance)
            yield from in_order(numbered)

    def _scored(self, rows: Rows, advance: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
        task, joined, names = self._input_task, JoinedRows(), [name for name in ("text", "pair") if name in rows.dataset.column_names]
        assert task.outputs is not None
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
            encoded = self.encode(rows, Path(work), task)
            with self._accelerated(self.model):
                for indices, outputs, _ in replace(self._scorer(), task=task).outputs(encoded):
                    examples = Examples(encoded, indices)
                    found = task.outputs(self.spec.task, outputs, self._tuned, examples)
                    if task.join is not None:
                        for row, parts in joined.add(examples, found):
                            yield row, task.join(self.spec.task, parts, rows.dataset[row])
                            advance(1)
                        continue
                    texts = examples.sources()
                    cut = encoded.full_lengths[indices] - encoded.lengths[indices]
                    for offset, result in enumerate(found):
                        if task.to_text is not None:
                            result = task.to_text(self.spec.task, self.tokenizer, texts["text"][offset], result)
                        given = {name: texts[name][offset] for name in names}
                        yield int(examples.row[offset]), {**given, **result, **cut_tokens(cut[offset])}
                    advance(len(indices))


def in_order(numbered: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Results by their numbers 0, 1, 2, ..., each as soon as those before it are there."""
    waiting: dict[int, dict[str, Any]] = {}
    following = 0
    for index, result in numbered:
        waiting[index] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _wrong_shape(names: list[str], where: str, row: Any) -> InputError:
    shape = ", ".join(f'"{name}": "..."' for name in names)
    fix = f"give {{{shape}}}, from Python or as a line of JSON: `tunesmith predict RUN -`"
    return InputError("data.column_type", f"a row of this run is {' and '.join(names)}", where=where, found=repr(row)[:100], fix=fix)
