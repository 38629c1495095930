"""`predict`: from a file, standard input or texts, to lines, a file or values."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.cache import key_of
from tunesmith.data.json_document import check_surrogates, unique_keys
from tunesmith.data.text import BadLine, Line, read_lines
from tunesmith.errors import InputError
from tunesmith.verbs.run import Run

LONGEST_NAME = 4096


def read_contexts(contexts: Sequence[str], num_questions: int) -> list[str]:
    """The context of each question: a text, or the content of the file of that name; one is that of all questions.

    Raises InputError when a file cannot be read.
    """
    texts = []
    for context in contexts:
        is_file = len(context) < LONGEST_NAME and os.path.isfile(context)  # a text may be no name at all
        lines = list(read_lines(Path(context), "utf-8")) if is_file else []
        bad = [line.problem for line in lines if isinstance(line, BadLine)]
        if bad:
            raise InputError.from_problems(bad)
        texts.append("\n".join(line.text for line in lines if isinstance(line, Line)) if is_file else context)
    return texts * num_questions if len(texts) == 1 else texts


def predict_to(run: Run, file: str | None, texts: Sequence[str], pairs: Sequence[str], out: str | None) -> dict[str, Any]:
    """`{"predictions": rows}`, or `{"rows": number, "resumed_after": number, "out": path}` when they are written to a file.

    A .jsonl that was interrupted goes on where it was, if the run and the rows are the same.

    Raises InputError when there is nothing to predict, or the rows cannot be read; then nothing is written.
    """
    if (file is None) == (not texts):
        raise InputError(
            "usage.argument",
            "predict takes a file, - or --text",
            found="both" if texts else "none of them",
            fix="for example --text 'a fine film'",
        )
    if pairs and len(pairs) != len(texts):
        problem = "there must be one --pair for each --text, or one --context for each --question or for all"
        raise InputError("usage.argument", problem, found=f"{len(texts)} and {len(pairs)}")
    if out is None:
        return {"predictions": _rows(run, file, texts, pairs, 0)}
    path = Path(out)
    _check_out(path)
    key = _key(run, file) if path.suffix == ".jsonl" and file not in (None, "-") else ""
    done = _num_done(path, key)
    return {"rows": _write(_rows(run, file, texts, pairs, done), path, key, done), "resumed_after": done, "out": out}


def _rows(run: Run, file: str | None, texts: Sequence[str], pairs: Sequence[str], done: int) -> Iterable[dict[str, Any]]:
    if texts:
        return run.predict(list(zip(texts, pairs, strict=True)) if pairs else list(texts))
    if file == "-":
        lines = [line.rstrip("\r\n") for line in _standard_input()]
        if run.reads_texts:
            return run.predict([line for line in lines if line.strip()])
        return run.predict([_object(line, number) for number, line in enumerate(lines, 1) if line.strip()])
    assert file is not None
    return run.predict_file(file, skip=done)


def _object(line: str, number: int) -> dict[str, Any]:
    """A row that is more than a text."""
    try:
        row = json.loads(line, object_pairs_hook=unique_keys)
        check_surrogates(line, row)
    except (ValueError, RecursionError) as error:
        row, found = None, str(error)
    else:
        found = line[:100]
    if not isinstance(row, dict):
        fix = "write one object a line, with the columns of the run's rows"
        raise InputError("data.unreadable_line", "the line is not a JSON object", where=f"-:{number}", found=found, fix=fix)
    return row


def _standard_input() -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(sys.stdin, 1):  # noqa: B007
            yield line
    except UnicodeDecodeError as error:
        fix = "convert it to UTF-8, for example with iconv"
        raise InputError(
            "data.encoding", "standard input is not valid UTF-8", where=f"-: after line {number}", found=str(error), fix=fix
        ) from error


def _check_out(path: Path) -> None:
    if path.suffix not in (".jsonl", ".csv"):
        raise InputError(
            "usage.output_exists", "predictions are written as .jsonl or .csv", found=str(path), fix=f"--out {path.stem}.jsonl"
        )
    if not path.parent.is_dir():
        raise InputError("usage.output_exists", "there is no such folder", where=str(path.parent), fix="make it, or give another --out")


def _key(run: Run, file: str | None) -> str:
    """What predictions that were interrupted must have been made from, to be gone on with."""
    try:
        content = Path(str(file)).read_bytes()
    except OSError:  # a folder, or nothing: reading it says more
        return ""
    return key_of(content, str(run.path.resolve()), run.spec.model_dump(mode="json"), run.directory.read_json("result.json"))


def _partial(path: Path) -> tuple[Path, Path]:
    """Where predictions wait for the last of them, and what they were made from."""
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.partial.key")


def _num_done(path: Path, key: str) -> int:
    """Predictions of an interrupted command that can be kept; a last line that was cut off is taken away."""
    partial, made_from = _partial(path)
    if not key or not partial.exists() or not made_from.exists() or made_from.read_text(encoding="utf-8") != key:
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    partial.write_bytes(whole)
    return whole.count(b"\n")


def _write(rows: Iterable[dict[str, Any]], path: Path, key: str, done: int) -> int:
    """Writes predictions beside the path, after those that are done, and renames them into place when all are there."""
    partial, made_from = _partial(path)
    made_from.unlink(missing_ok=True)
    with partial.open("a" if done else "w", encoding="utf-8", newline="") as file:
        if key:
            made_from.write_text(key, encoding="utf-8")
        count = _write_csv(rows, file) if path.suffix == ".csv" else _write_jsonl(rows, file)
    partial.replace(path)
    made_from.unlink(missing_ok=True)
    return done + count


def _write_jsonl(rows: Iterable[dict[str, Any]], file: Any) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
    return count


def _write_csv(rows: Iterable[dict[str, Any]], file: Any) -> int:
    count, writer = 0, None
    for count, row in enumerate(_flat(rows), 1):  # noqa: B007
        if writer is None:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
        writer.writerow(row)
    return count


def _flat(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        flat = {
            key: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
            for key, value in row.items()
            if key not in ("scores", "labels")
        }
        if "labels" in row:
            flat["labels"] = ",".join(row["labels"])
        flat = {key: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for key, value in flat.items()}
        yield {**flat, **{f"score_{label}": score for label, score in row.get("scores", {}).items()}}
