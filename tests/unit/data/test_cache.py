import os
from pathlib import Path

import pytest

from tunesmith.data import cache


def fill(key: str, size: int) -> tuple[Path, bool]:
    return cache.cached_folder("things", key, lambda folder: (folder / "content").write_bytes(bytes(size)) and None)


def age(folder: Path, seconds: float) -> None:
    marker = folder / "complete.json"
    os.utime(marker, (marker.stat().st_mtime - seconds,) * 2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_folder_is_made_once_and_again_when_a_file_is_cut():
    folder, was_there = fill("a", 10)
    assert (was_there, fill("a", 10)[1]) == (False, True)
    (folder / "content").write_bytes(b"123")
    assert fill("a", 10) == (folder, False)
    assert (folder / "content").stat().st_size == 10


def test_what_was_not_used_for_longest_is_removed_first(monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 300)
    for key in "abc":
        age(fill(key, 90)[0], 10 * cache.SAFE_SECONDS)
    fill("a", 90)  # used again
    fill("d", 90)
    assert sorted(path.name for path in (cache.cache_folder() / "things").iterdir()) == ["a", "d"]


def test_what_was_used_just_now_is_kept_however_large(monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 100)
    for key in "abc":
        fill(key, 90)
    assert len(list((cache.cache_folder() / "things").iterdir())) == 3
