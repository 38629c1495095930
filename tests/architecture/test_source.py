"""Rules about the source itself: sizes, names, docstrings, error codes, and what must never be written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import CODES

ROOT = Path(tunesmith.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE = {"utils", "helpers", "common", "misc", "base", "util", "helper", "manager"}
UPSTREAM_BASES = ("TrainerCallback", "Trainer", "Dataset", "DataLoader", "Sampler", "Protocol", "SafeLoader", "ArgumentParser")
"""Methods of these keep upstream's meaning and need no docstring of ours."""

TAKE_A_CODE = {"InputError", "RunError", "TunesmithError", "Problem", "refuse"}

in_every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def definitions(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, ast.ClassDef | None, bool]]:
    """(definition, class it stands in, whether it stands in a function)."""

    def walk(
        node: ast.AST, owner: ast.ClassDef | None, inside: bool
    ) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, ast.ClassDef | None, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield child, owner, inside
                yield from walk(child, None, True)
            elif isinstance(child, ast.ClassDef):
                yield child, owner, inside
                yield from walk(child, child, inside)
            else:
                yield from walk(child, owner, inside)

    yield from walk(ast.parse(path.read_text()), None, False)


@in_every_file
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    long = {item.name: item.end_lineno - item.lineno + 1 for item, _, _ in definitions(path) if isinstance(item, ast.FunctionDef)}
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


@in_every_file
def test_names_of_modules_say_something(path: Path) -> None:
    assert not VAGUE & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}


@in_every_file
def test_what_is_public_has_a_docstring(path: Path) -> None:
    source = path.read_text()
    if source.strip():
        assert ast.get_docstring(ast.parse(source)), "the module says nothing"
    missing = []
    for item, owner, inside in definitions(path):
        public = not inside and not item.name.startswith("_") and not (owner and owner.name.startswith("_"))
        upstream = owner is not None and any(base in ast.unparse(node) for node in owner.bases for base in UPSTREAM_BASES)
        if public and not upstream and not ast.get_docstring(item):
            missing.append(f"{path}:{item.lineno} {item.name}")
    assert not missing


def string_literals(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def raised_codes() -> dict[str, str]:
    """Codes given to errors, problems and reasons outside errors.py, with one of their places."""
    groups = {code.partition(".")[0] for code in CODES}
    pattern = re.compile(rf"({'|'.join(groups)})\.[a-z_]+")
    found: dict[str, str] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                given = node.args[2:3] if name == "bad_line" else node.args[:1] if name in TAKE_A_CODE else []
            else:
                given = node.elts[:1] if isinstance(node, ast.Tuple) and len(node.elts) in (3, 4) else []
            for value in given:
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and pattern.fullmatch(value.value):
                    found[value.value] = f"{path}:{value.lineno}"
    return found


def test_every_code_that_is_raised_is_documented() -> None:
    raised = raised_codes()
    assert len(raised) > len(CODES) / 2
    assert {code: place for code, place in raised.items() if code not in CODES} == {}


def test_every_documented_code_is_raised_somewhere() -> None:
    literals = {literal for path in FILES if path.name != "errors.py" for literal, _ in string_literals(path)}
    assert [code for code in CODES if code not in literals] == []


@in_every_file
def test_no_remote_code_no_pickle_no_networks_of_our_own(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            asked = "request['trust_remote_code']" if path.name == "reload_model.py" else "is_trusted("
            assert ast.unparse(node.value).startswith(asked), f"{path}:{node.value.lineno}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            packages = {name.partition(".")[0] for name in names}
            assert not packages & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "requests", "httpx"}, (
                f"{path}:{node.lineno}"
            )
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "pickle.load", "pickle.loads"), f"{path}:{node.lineno}"
            if path.name != "trainer.py":  # it writes what Trainer reads, with weights_only
                assert ast.unparse(node.func) != "torch.save", f"{path}:{node.lineno}"


@in_every_file
def test_no_weights_are_read_but_safetensors(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            target = ast.unparse(node.func.value)
            if "auto_model" in target:
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("use_safetensors") == "True", f"{path}:{node.lineno}"
                assert given.get("local_files_only") == "True", f"{path}:{node.lineno}"
