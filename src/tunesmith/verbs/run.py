"""A finished run as an object: its metrics, and its model to evaluate and to predict with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.encode import encode_rows
from tunesmith.data.findings import Findings
from tunesmith.data.lint import lint_labels
from tunesmith.data.rows import Rows, decide_columns, open_sources, read_split
from tunesmith.data.tables import keep_table
from tunesmith.engines.scoring import Scorer
from tunesmith.errors import InputError
from tunesmith.registry import TASKS, Role, Task
from tunesmith.runs.directory import RunDirectory
from tunesmith.runs.progress import Progress
from tunesmith.spec import RunSpec
from tunesmith.verbs.init import data_spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_run(path: str | Path) -> Run:
    """The run in a directory.

    Raises InputError when it is none.
    """
    return Run(RunDirectory.open(path))


class Run:
    """A run directory with a model."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

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
        from tunesmith.models.load import load_trained

        _ = self.result
        return load_trained(self.directory.model, self._task.auto_model)

    @property
    def _task(self) -> Task:
        return TASKS.get(self.spec.task.name)

    @property
    def _tuned(self) -> dict[str, Any]:
        """What was tuned on validation rows, such as thresholds."""
        return self.directory.read_json("model/thresholds.json") or {}

    def _scorer(self) -> Scorer:
        return Scorer(self.model, self._task, self.spec.task, int(self.tokenizer.pad_token_id), self.spec.train)

    def evaluate(self, data: Any = None, *, quiet: bool = False) -> dict[str, Any]:
        """Metrics, intervals and details on `data` (a path or a table); by default on the run's test set, else its validation set.

        Raises InputError when the data is wrong, or is not what the run was trained with.
        """
        progress = Progress(quiet)
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
            rows = self._own_rows() if data is None else self._labelled_rows(keep_table(data), Path(work))
            # The thresholds of several labels were tuned on the validation rows: those measure themselves anew, as in training.
            tuned = {} if data is None and rows.split == "validation" else self._tuned
            section: Any = self.spec.task
            encoded = encode_rows(rows, b"", self._task, section, self.tokenizer, section.max_length, Path(work), use_cache=False)
            with progress.activity(f"evaluating on {len(rows):,} rows", len(rows)) as activity:
                result = self._scorer().evaluate(encoded, tuned, advance=activity.advance)
        return {"split": rows.split, **result}

    def _own_rows(self) -> Rows:
        from tunesmith.prepare import check_unchanged, prepare_data

        data = prepare_data(self.spec)
        check_unchanged(self.directory, data)
        for split in ("test", "validation"):
            if split in data.rows:
                self._work = data.work
                return data.rows[split]
        raise InputError(
            "data.no_such_file", "the run has neither test nor validation rows", fix="name a file: tunesmith evaluate RUN --data FILE"
        )

    def _labelled_rows(self, source: str, work: Path) -> Rows:
        rows, findings = self._read(source, self._task.roles, work)
        lint_labels(rows, self._task, self.spec.task, findings)
        findings.raise_if_any()
        return rows

    def _read(self, source: str, roles: Sequence[Role], work: Path) -> tuple[Rows, Findings]:
        all_columns: Any = self.spec.data.columns
        columns = {role.name: all_columns[role.name] for role in roles if role.name in all_columns}
        used = [role for role in roles if role.name in columns]
        spec = data_spec(source if source.startswith("hub:") else str(Path(source).absolute()), self.spec.data)
        opened = open_sources(spec)
        chosen, _ = decide_columns(opened, spec.model_copy(update={"columns": columns}), used)
        findings = Findings()
        rows = read_split("train", opened.origins["train"], chosen, used, work, findings)
        rows.split = "data"
        return rows, findings

    def predict(self, rows: str | Sequence[Any], *, quiet: bool = True) -> list[dict[str, Any]]:
        """One prediction a row, in their order: `{text, label, score, scores}`, `{text, labels, scores}` or `{text, value}`.

        A row is a text, or (text, pair), or a mapping with these.
        """
        import datasets

        listed = [rows] if isinstance(rows, str) else list(rows)
        plain = [self._plain_row(row, index) for index, row in enumerate(listed)]
        if not plain:
            return []
        columns = {name: [row[name] for row in plain] for name in plain[0]}
        dataset = datasets.Dataset.from_dict({**columns, "file": [0] * len(plain), "line": list(range(1, len(plain) + 1))})
        return [result for _, result in sorted(self._predicted(Rows("data", dataset, ["row"]), quiet))]

    def _plain_row(self, row: Any, index: int) -> dict[str, str]:
        names = ["text"] + (["pair"] if "pair" in self.spec.data.columns else [])
        values = [row.get(name) for name in names] if isinstance(row, dict) else [row] if isinstance(row, str) else list(row)
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise InputError(
                    "data.empty_text",
                    "the row has no text",
                    where=f"row:{index + 1}",
                    found=repr(row)[:100],
                    fix=f"a row is {' and '.join(names)}",
                )
        if len(values) != len(names):
            raise InputError(
                "data.column_type", f"a row of this run is {' and '.join(names)}", where=f"row:{index + 1}", found=repr(row)[:100]
            )
        return dict(zip(names, values, strict=True))

    def predict_file(self, source: str, *, quiet: bool = False) -> Iterator[dict[str, Any]]:
        """Predictions for every row of a file, in order, a few thousand rows at a time.

        Raises InputError with every row that cannot be read, before anything is predicted.
        """
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
            rows, findings = self._read(source, [role for role in self._task.roles if role.kind == "text"], Path(work))
            findings.raise_if_any()
            waiting: dict[int, dict[str, Any]] = {}
            following = 0
            for index, result in self._predicted(rows, quiet):
                waiting[index] = result
                while following in waiting:
                    yield waiting.pop(following)
                    following += 1

    def _predicted(self, rows: Rows, quiet: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, prediction) pairs, in the order they are computed."""
        section: Any = self.spec.task
        names = [name for name in ("text", "pair") if name in rows.dataset.column_names]
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as work:
            encoded = encode_rows(rows, b"", self._task, section, self.tokenizer, section.max_length, Path(work), use_cache=False)
            with Progress(quiet).activity("predicting", len(rows)) as activity:
                for indices, logits, _ in self._scorer().logits(encoded, activity.advance):
                    texts = rows.dataset[[int(index) for index in indices]]
                    for offset, result in enumerate(self._task.outputs(section, logits, self._tuned)):
                        yield int(indices[offset]), {**{name: texts[name][offset] for name in names}, **result}
