from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.native.library import library


@pytest.fixture(scope="session")
def compiled() -> None:
    """The kernels, compiled into the user's cache, which outlives a test's own."""
    library()


@pytest.fixture(autouse=True)
def own_cache(compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "xdg-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder / "tunesmith"
