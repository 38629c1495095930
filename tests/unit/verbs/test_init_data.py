"""What the reading settings of a run's data say of another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.spec import DataSpec
from tunesmith.verbs.init import data_spec


@pytest.mark.parametrize(("source", "is_kept"), [("more.tsv", True), ("more.csv.gz", True), ("more.jsonl", False), ("more.txt", False)])
def test_the_layout_of_fields_is_that_of_files_of_the_format(source: str, is_kept: bool) -> None:
    like = DataSpec(train=["rows.csv"], delimiter="\t", extra_fields="ignore", header=False, encoding="latin-1", on_bad_row="skip")
    found = data_spec(source, like)
    assert (found.delimiter, found.extra_fields, found.header) == (("\t", "ignore", False) if is_kept else ("auto", "error", "auto"))
    assert (found.train, found.encoding, found.on_bad_row) == (str(Path(source).absolute()), "latin-1", "skip")
