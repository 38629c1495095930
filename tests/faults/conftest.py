from __future__ import annotations

from pathlib import Path

import pytest

from faulty_runs import train


@pytest.fixture(scope="session")
def straight(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which nothing goes wrong, its proof left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
        return train(tiny_bert, tmp_path_factory.mktemp("straight") / "run")


@pytest.fixture
def without_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process of the proof takes seconds; these tests compare files."""
    monkeypatch.setattr("tunesmith.verbs.prove.prove_model", lambda *arguments: {"proven": True, "problems": []})
