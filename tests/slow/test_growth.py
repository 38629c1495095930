"""Rows live on disk: reading and checking ten times as many takes hardly more memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MEASURE = """
import resource, sys
from tunesmith.prepare_data import prepare_data
from tunesmith.verbs.init import spec_of
data = prepare_data(spec_of(sys.argv[1], ["model=" + sys.argv[2], "data.validation=5%"]))
print(len(data.rows["train"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def _megabytes(model: Path, folder: Path, num_rows: int) -> int:
    path = folder / f"{num_rows}.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        file.writelines(
            f'"row {index} of a long file, with a comma and some words to read",{"yes" if index % 3 else "no"}\n'
            for index in range(num_rows)
        )
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path), str(model)], capture_output=True, text=True, check=True)
    rows, megabytes = map(int, done.stdout.split())
    assert rows == round(num_rows * 0.95)
    return megabytes


def test_memory_hardly_grows_with_rows(tiny_bert: Path, tmp_path: Path) -> None:
    few, many = _megabytes(tiny_bert, tmp_path, 40_000), _megabytes(tiny_bert, tmp_path, 400_000)
    assert many - few < 150, f"{few} MB for 40,000 rows, {many} MB for 400,000"
