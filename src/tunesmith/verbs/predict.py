"""`predict`: from a file, standard input or texts, to lines, a file or values."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.verbs.run import Run


def predict_to(run: Run, file: str | None, texts: Sequence[str], pairs: Sequence[str], out: str | None) -> dict[str, Any]:
    """`{"predictions": rows}`, or `{"rows": number, "out": path}` when they are written to a file.

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
        raise InputError("usage.argument", "there must be one --pair for each --text", found=f"{len(texts)} --text, {len(pairs)} --pair")
    rows = _rows(run, file, texts, pairs)
    if out is None:
        return {"predictions": rows}
    return {"rows": _write(rows, Path(out)), "out": out}


def _rows(run: Run, file: str | None, texts: Sequence[str], pairs: Sequence[str]) -> Iterable[dict[str, Any]]:
    if texts:
        return run.predict(list(zip(texts, pairs, strict=True)) if pairs else list(texts))
    if file == "-":
        return run.predict([line.rstrip("\r\n") for line in _standard_input() if line.strip()])
    assert file is not None
    return run.predict_file(file)


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


def _write(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes predictions beside the path and renames them into place when all are there."""
    if path.suffix not in (".jsonl", ".csv"):
        raise InputError(
            "usage.output_exists", "predictions are written as .jsonl or .csv", found=str(path), fix=f"--out {path.stem}.jsonl"
        )
    if not path.parent.is_dir():
        raise InputError("usage.output_exists", "there is no such folder", where=str(path.parent), fix="make it, or give another --out")
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        count = _write_csv(rows, file) if path.suffix == ".csv" else _write_jsonl(rows, file)
    partial.replace(path)
    return count


def _write_jsonl(rows: Iterable[dict[str, Any]], file: Any) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
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
        flat = {key: value for key, value in row.items() if key not in ("scores", "labels")}
        if "labels" in row:
            flat["labels"] = ",".join(row["labels"])
        yield {**flat, **{f"score_{label}": score for label, score in row.get("scores", {}).items()}}
