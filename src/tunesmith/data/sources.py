"""Finds the files that a source names, and opens datasets; the rows of a file come from `read_rows`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.readers import read_rows
from tunesmith.data.sniff import FORMATS
from tunesmith.data.text import BadLine, RawRow, content_suffix, place
from tunesmith.errors import InputError, did_you_mean, nearest

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["BadLine", "RawRow", "find_files", "is_datasets_folder", "open_dataset", "place", "read_rows"]

DOCUMENTATION = re.compile(r"(readme|licen[cs]e|copying|notice|source|changelog|citation|authors|contributing|requirements)", re.IGNORECASE)
HUB = re.compile(r"hub:(?P<name>[^:]+)(?::(?P<config>[^:\[\]]+))?:(?P<split>[^:\[\]]+(?:\[[^\]]*\])?)")


def find_files(source: str | list[str], root: Path) -> list[Path]:
    """The data files of a file, a folder or a list of these, in natural order within a folder; relative paths start from `root`."""
    files: list[Path] = []
    for name in [source] if isinstance(source, str) else source:
        path = _existing(name, root)
        if is_datasets_folder(path):
            fix = "name it alone, not in a list; or its .arrow files one by one"
            raise InputError("spec.value", "a folder written by datasets cannot be one of several files", found=str(path), fix=fix)
        files += _files_of_folder(path) if path.is_dir() else [path]
    if not files:
        raise InputError("data.no_files", "the list of data files is empty", fix="name a file, e.g. data.train=reviews.csv")
    seen: dict[Path, Path] = {}
    for file in files:
        resolved = file.resolve()
        if resolved in seen:
            found = f"{seen[resolved]} and {file}" if seen[resolved] != file else str(file)
            raise InputError("spec.conflict", "a data file is named twice", found=found, fix="name it once")
        seen[resolved] = file
    return files


def _existing(name: str, root: Path) -> Path:
    if not name.strip():
        raise InputError("spec.value", "a data source is empty", found=repr(name), fix="name a file or folder")
    if name.startswith("hub:"):
        fix = "name the dataset alone; or write it to a folder with save_to_disk"
        raise InputError("spec.value", "a dataset of the hub cannot be one of several files", found=name, fix=fix)
    path = root / os.path.expanduser(name)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError("data.no_such_file", "this cannot be the name of a file", found=shorten_name(name), fix=str(error)) from None
    if not exists:
        raise InputError("data.no_such_file", "there is no such file or folder", found=str(path), fix=_where_else(name, path, root))
    if not path.is_dir() and not path.is_file():
        fix = "write its content to a file"
        raise InputError("data.unreadable_file", "a data source is neither a file nor a folder", found=str(path), fix=fix)
    return path


def shorten_name(name: str) -> str:
    """The name of a file, quoted, for messages."""
    return repr(name if len(name) <= 200 else name[:200] + "...")


def _where_else(name: str, path: Path, root: Path) -> str:
    here = Path(name).absolute()
    try:
        if here.exists() and here != path.absolute():
            return f"{here} exists, but relative paths start from {root.absolute()}: write the whole path, or set data.root"
    except (OSError, ValueError):
        pass
    if any(char in name for char in "*?"):
        return "patterns are not expanded: name the folder, or list the files"
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        path, folder = folder, folder.parent
    try:
        names = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError:
        names = []
    match = nearest(path.name, names) or next((entry for entry in names if Path(entry).stem == path.stem), None)
    if match is not None:
        return f"did you mean {match}?" if folder == Path(name).parent else f"did you mean {folder / match}?"
    shown = f"it holds {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "it holds nothing"
    return f"there is a folder {folder}; {shown}"


def _files_of_folder(folder: Path) -> list[Path]:
    """The files with a suffix of data, hidden ones left out; .txt files only where there are no others."""
    found: list[Path] = []
    visited: set[str] = set()

    def refuse(error: OSError) -> None:
        problem = "a folder cannot be read"
        raise InputError("data.unreadable_file", problem, found=str(error.filename), fix=error.strerror or "") from error

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if os.path.realpath(parent) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    found.sort(key=lambda path: _natural(path.relative_to(folder)))
    data = [path for path in found if content_suffix(path) in FORMATS]
    data = data or [path for path in found if content_suffix(path) == ".txt" and not DOCUMENTATION.match(path.name)]
    if not data:
        shown = ", ".join(str(path.relative_to(folder)) for path in found[:10]) + (", ..." if len(found) > 10 else "")
        fix = f"name files one by one; known by their suffix are {', '.join(FORMATS)} and .txt, each also with .gz or .zst"
        raise InputError("data.no_files", "the folder holds no data files", found=f"{folder}: {shown or 'nothing'}", fix=fix)
    return data


def _natural(path: Path) -> list[list[tuple[int, int, str]]]:
    """A key that sorts part 2 before part 10."""

    def key(piece: str) -> tuple[int, int, str]:
        return (1, int(piece), "") if piece.isdecimal() and len(piece) < 100 else (2, 0, piece.lower())

    return [[*(key(piece) for piece in re.split(r"(\d+)", part) if piece), (0, 0, part)] for part in path.parts]


def is_datasets_folder(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder, or the part of it that `PATH@SPLIT` names."""
    folder, _ = _without_split(path)
    # os.path answers False where pathlib raises: for names too long, or with a NUL
    return os.path.isfile(folder / "dataset_dict.json") or all(
        os.path.isfile(folder / name) for name in ("dataset_info.json", "state.json")
    )


def _without_split(path: Path) -> tuple[Path, str]:
    name, at, split = path.name.rpartition("@")
    return (path, "") if not at or not name or os.path.isdir(path) else (path.with_name(name), split)


def open_dataset(source: str, root: Path) -> Dataset:
    """The dataset in a folder that `datasets` wrote (of several splits `train`, or that of `PATH@SPLIT`), or `hub:NAME[:CONFIG]:SPLIT`."""
    if source.startswith("hub:"):
        return _load_hub(source)
    from datasets import DatasetDict, load_from_disk

    folder, split = _without_split(root / os.path.expanduser(source))
    if not is_datasets_folder(folder):
        _existing(str(folder), root)
        fix = "name a folder that `save_to_disk` of datasets wrote"
        raise InputError("data.unreadable_file", "datasets did not write this folder", found=str(folder), fix=fix)
    try:
        dataset: Any = load_from_disk(str(folder))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError("data.unreadable_file", "the dataset is damaged", where=str(folder), found=found, fix="write it again") from error
    if not isinstance(dataset, DatasetDict):
        if split:
            raise InputError("spec.no_effect", "the dataset has no splits to choose from", found=source, fix=f"leave out @{split}")
        return dataset
    if (split or "train") not in dataset:
        problem = f"the dataset has no split {split or 'train'}"
        fix = did_you_mean(split, list(dataset)) if split else f"name one as {source}@SPLIT; splits: {', '.join(dataset)}"
        raise InputError("data.no_such_file", problem, found=source, fix=fix)
    return dataset[split or "train"]


def _load_hub(source: str) -> Dataset:
    match = HUB.fullmatch(source)
    if match is None:
        fix = "write hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT, e.g. hub:stanfordnlp/sst2:train"
        raise InputError("spec.value", "a dataset of the hub is not named in full", found=source, fix=fix)
    from datasets import load_dataset

    name, config, split = match["name"], match["config"], match["split"]
    try:
        return load_dataset(name, config, split=split)
    except Exception as error:
        arguments = ", ".join(repr(part) for part in (name, config) if part)
        fix = (
            "check the name, and the network; without one, run where there is one "
            f"`datasets.load_dataset({arguments}).save_to_disk('FOLDER')`, copy FOLDER here, and name it: FOLDER@{split.partition('[')[0]}"
        )
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError("data.hub", f"the dataset {name} cannot be loaded from the hub", where=source, found=found, fix=fix) from error
