"""Nothing heavy is imported before it is needed, and the public names are few."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tunesmith

HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "pyarrow", "accelerate", "scipy", "pydantic", "rich", "yaml")


def loaded_by(code: str) -> list[str]:
    """The heavy packages that are loaded after `code`, in a process of its own."""
    program = f"import sys\n{code}\nprint()\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from tunesmith.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_by(code) == []


def test_importing_tunesmith_imports_nothing_heavy() -> None:
    assert loaded_by("import tunesmith") == []


def test_the_measure_sees_what_is_loaded() -> None:
    assert loaded_by("import tunesmith\ntunesmith.load_spec") == ["pydantic", "yaml"]


def test_reading_a_spec_does_not_import_torch() -> None:
    code = "import tunesmith\ntunesmith.load_spec({'task': 'text_classification', 'model': 'minilm', 'data': 'a.csv', 'method': 'full'})"
    assert "torch" not in loaded_by(code)
    assert "transformers" not in loaded_by(code)


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(tunesmith.__all__) <= 20
    assert len(set(tunesmith.__all__)) == len(tunesmith.__all__)
    for name in tunesmith.__all__:
        assert getattr(tunesmith, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = tunesmith.trian
