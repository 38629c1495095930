"""What a user is told when something is wrong: a code, what was found, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

CODES: dict[str, str] = {
    # the command line
    "usage.argument": "The command line has an argument that the command does not take.",
    "usage.no_such_run": "The folder named is not a run directory.",
    "usage.run_exists": "The run directory named already holds something.",
    "usage.run_in_use": "Another process works on the run.",
    "usage.nothing_to_resume": "The run has no complete checkpoint, or it has already finished.",
    "usage.output_exists": "The output file cannot be written.",
    "usage.missing_extra": "An optional dependency is not installed.",
    # the spec
    "spec.no_such_file": "The spec or data file named does not exist.",
    "spec.syntax": "The spec is not valid YAML or JSON.",
    "spec.unknown_key": "The spec has a key that does not exist.",
    "spec.duplicate_key": "The spec says the same key twice.",
    "spec.missing_key": "The spec lacks a key that has no default.",
    "spec.value": "A value in the spec has the wrong type or lies outside its range.",
    "spec.unknown_name": "A task, method or model is named that does not exist.",
    "spec.no_effect": "A setting in the spec would have no effect.",
    "spec.conflict": "Two settings contradict each other.",
    "spec.trainer_argument": "train.extra names something that the installed TrainingArguments does not have, or refuses.",
    "spec.override": "An override on the command line is not key=value.",
    "spec.undecided": "What the spec leaves to `auto` cannot be decided from this data.",
    # files and rows
    "data.no_such_file": "A data file or folder does not exist.",
    "data.no_files": "A folder or list holds no readable data file.",
    "data.empty_file": "A data file holds no rows.",
    "data.unreadable_file": "A file is not what its name says, or is damaged.",
    "data.format": "The format of a file cannot be recognised.",
    "data.encoding": "A line is not valid in the file's encoding.",
    "data.line_count": "Two parallel files have not as many lines.",
    "data.unreadable_line": "A line cannot be parsed.",
    "data.field_count": "A line has more or fewer fields than the others.",
    "data.missing_column": "A column named in the spec, or needed by the task, is not in the file.",
    "data.ambiguous_columns": "Which column is the text and which the label cannot be seen from the data.",
    "data.column_type": "A value has a type that its column cannot hold.",
    "data.empty_text": "A row has no text.",
    "data.no_mask": "A text that is to be filled in has no mask.",
    "data.empty_label": "A row has no label.",
    "data.unknown_label": "A row's label is not one of the task's labels.",
    "data.tags": "A row's tags do not fit its tokens, or break the scheme in which they mark entities.",
    "data.span": "A span of characters does not fit its text.",
    "data.answers": "A row's answers contradict each other, or whether its question has any.",
    "data.repeated_id": "Two rows of a split have the same id.",
    "data.not_a_number": "A row's target is not a finite number.",
    "data.same_text": "Two texts of a row are the same where they ought to be different.",
    "data.score_range": "A row's score is outside the range of scores.",
    "data.conflicting_labels": "The same text stands with different labels.",
    "data.leak": "A row of the validation or test set also stands in the training set.",
    "data.small_class": "A class has too few rows to be split.",
    "data.one_class": "Every row has the same label: there is nothing to learn.",
    "data.too_small": "There are too few rows.",
    "data.left_out": "A row that the spec leaves out; counted and listed, no error.",
    "data.changed": "The data is no longer what the run was trained on.",
    "data.conversation": "A conversation cannot be used as it is written.",
    "data.too_long": "A row or a prompt is longer than what may be read.",
    "data.hub": "A dataset cannot be loaded from the hub.",
    # the model
    "model.not_found": "The model is neither an alias, nor a folder, nor in the local hub cache.",
    "model.load": "The model or its tokenizer cannot be loaded.",
    "model.remote_code": "The model needs Python code of its own, which runs only where the environment names its hash.",
    "model.hash": "A catalogued model's files are not the ones that were checked.",
    "model.changed": "The model is no longer what the run started from.",
    "model.tokenizer": "The tokenizer does not fit the task or the model.",
    "model.template": "The model's chat template is missing, or cannot be used for training.",
    "method.no_target": "target_modules names modules that the model does not have.",
    "method.idle": "Parts that ought to be trained have no gradient at the first step.",
    # the run
    "run.non_finite": "The loss or the gradient became infinite or not a number.",
    "run.out_of_memory": "The machine ran out of memory.",
    "run.interrupted": "The run was interrupted.",
    "run.changed": "The spec or the environment is no longer what the checkpoint was written with.",
    "run.best_lost": "The best checkpoint is damaged or gone, and the run would have ended with it.",
    "run.no_room": "The disk has no room for a checkpoint.",
    "run.not_written": "A checkpoint could not be written.",
    "run.not_read": "A checkpoint holds what is not loaded: code, or objects other than tensors and plain values.",
    "run.proof": "The saved model does not compute what was trained.",
    "run.other_process": "Another process that trained the same model is gone.",
    "run.failed": "The run failed for a reason outside tunesmith.",
}
"""Every code an error may carry, with its meaning."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it stands, what was found, and how to mend it."""

    code: str
    problem: str
    where: str = ""
    """`file:line` of a data or spec file, or the dotted key of an override."""
    found: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.code in CODES, f"undocumented error code {self.code}"

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.problem}"]
        if self.where:
            lines.append(f"  at     {self.where}")
        if self.found:
            lines.append(f"  found  {self.found}")
        if self.fix:
            lines.append(f"  fix    {self.fix}")
        return "\n".join(lines)


class TunesmithError(Exception):
    """Something is wrong; `problems` says what, where, and how to mend it."""

    exit_code = 1

    def __init__(self, code: str, problem: str, *, where: str = "", found: str = "", fix: str = "") -> None:
        self.problems: list[Problem] = [Problem(code, problem, where, found, fix)]
        self.counts: dict[str, int] = {code: 1}
        super().__init__(code, problem)

    @classmethod
    def from_problems(cls, problems: Sequence[Problem], counts: dict[str, int] | None = None) -> TunesmithError:
        """One error for many problems; `counts` says how many there are of each code, when not all are kept."""
        first = problems[0]
        error = cls(first.code, first.problem)
        error.problems = list(problems)
        error.counts = counts or {}
        for problem in () if counts else problems:
            error.counts[problem.code] = error.counts.get(problem.code, 0) + 1
        return error

    @property
    def code(self) -> str:
        """The code of the first problem."""
        return self.problems[0].code

    def __str__(self) -> str:
        text = "\n".join(str(problem) for problem in self.problems)
        total = sum(self.counts.values())
        if total == 1:
            return text
        shown = {code: sum(problem.code == code for problem in self.problems) for code in self.counts}
        tally = ", ".join(
            f"{count} {code}" + (f" (the first {shown[code]} shown)" if shown[code] < count else "") for code, count in self.counts.items()
        )
        return f"{text}\n{total} problems: {tally}"

    def as_json(self) -> dict[str, object]:
        """The error as plain values, for `--json`."""
        return {"problems": [vars(problem) for problem in self.problems], "counts": self.counts}


class InputError(TunesmithError):
    """The spec, the data or the command line is wrong: nothing was trained."""

    exit_code = 2


class RunError(TunesmithError):
    """The run started and could not end well; what was done is kept."""


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """Puts the problems of an InputError raised inside into the list, so that what follows can be looked at too."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely meant to be, or None when none is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or the list of what exists."""
    names = list(known)
    match = nearest(name, names)
    if match is not None:
        return f"did you mean {match}?"
    if not names:
        return "there is none"
    shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"one of: {shown}"
