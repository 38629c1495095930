"""Tables that a Python user holds in memory, kept as Parquet so that a run can be resumed and evaluated without them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.data.cache import cache_folder
from tunesmith.errors import InputError


def keep_table(value: Any) -> Any:
    """The path of a Parquet file with the rows of a DataFrame, a Dataset or a list of mappings; other values as they are.

    The file is named by its content, under the cache folder's `tables`.
    """
    if isinstance(value, (str, float, Path)) or (isinstance(value, list) and all(isinstance(item, (str, Path)) for item in value)):
        return value
    import pyarrow as pa

    try:
        table = _arrow_table(value)
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(
            "spec.value",
            "the table cannot be kept",
            found=" ".join(str(error).split())[:200],
            fix="a column holds values of one type: all text, or all numbers",
        ) from error
    if table is None:
        raise InputError(
            "spec.value",
            "data is neither a path nor a table",
            found=type(value).__name__,
            fix="a path, a pandas DataFrame, a datasets.Dataset, or a list of mappings",
        )
    import pyarrow.parquet as parquet

    folder = cache_folder() / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
    os.close(handle)
    parquet.write_table(table, temporary)
    digest = hashlib.sha256(Path(temporary).read_bytes()).hexdigest()[:16]
    path = folder / f"table-{digest}.parquet"
    Path(temporary).replace(path)
    return str(path)


def _arrow_table(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_dict"):
        return pa.Table.from_pandas(value, preserve_index=False)
    if type(value).__name__ == "Dataset" and hasattr(value, "with_format"):
        return value.with_format("arrow")[:]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        # Not from_pylist: it would drop every column that the first row lacks.
        names = dict.fromkeys(str(name) for row in value for name in row)
        return pa.table({name: [row.get(name) for row in value] for name in names})
    return None
