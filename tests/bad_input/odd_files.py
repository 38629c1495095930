"""Builds the files of the catalogue that are no text: packed, cut short, damaged, or something else than their name says."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import zstandard

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89"


def _table(good: bytes) -> pa.Table:
    rows = [line.split(",") for line in good.decode().splitlines()]
    return pa.table({name: [row[column] for row in rows[1:]] for column, name in enumerate(rows[0])})


def _parquet(good: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(_table(good), sink)
    return sink.getvalue().to_pybytes()


def _arrow(good: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.feather.write_feather(_table(good), sink, compression="uncompressed")
    return sink.getvalue().to_pybytes()


def _overwritten(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + b"\xff" * length + content[start + length :]


def _null_labels(good: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    texts = _table(good).column("text").to_pylist()
    stars = [float(number % 2) if number != 2 else float("nan") for number in range(len(texts))]
    pyarrow.parquet.write_table(pa.table({"text": texts, "stars": stars}), sink)
    return sink.getvalue().to_pybytes()


BUILT: dict[str, Callable[[bytes], bytes]] = {
    "png_named_csv": lambda good: PNG,
    "gzip_named_csv": gzip.compress,
    "truncated_gzip": lambda good: gzip.compress(good)[:-20],
    "gzip_that_is_none": lambda good: good,
    "truncated_zstandard": lambda good: zstandard.compress(good)[:-20],
    "zstandard_that_is_none": lambda good: good,
    "damaged_parquet": lambda good: _overwritten(_parquet(good), 20, 120),
    "parquet_cut_short": lambda good: _parquet(good)[:-30],
    "parquet_that_is_none": lambda good: good,
    "parquet_with_null_labels": _null_labels,
    "damaged_arrow": lambda good: _overwritten(_arrow(good), len(_arrow(good)) - 80, 60),
}
"""The content of a case's one file, from that of good.csv."""


def build(case: str, path: Path, good: bytes) -> None:
    """Writes the file of a case."""
    path.write_bytes(BUILT[case](good))
