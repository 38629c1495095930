"""Who may import whom: a module imports what lies below it, and tasks and methods never each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith

ROOT = Path(tunesmith.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEVELS = {
    **dict.fromkeys(("errors", "registry", "spec", "spec_file", "strict", "schema"), 0),
    **dict.fromkeys(("data", "models", "native", "runs", "metrics"), 1),
    **dict.fromkeys(("tasks", "methods", "speed"), 2),
    **dict.fromkeys(("engines", "resolve"), 3),
    **dict.fromkeys(("pipeline", "prepare", "prepare_data", "verbs"), 4),
    **dict.fromkeys(("cli", "web"), 5),
}
OWNERS = {"peft": ("methods",), "trl": ("engines",)}
LEVEL_0_PACKAGES = {"yaml", "pydantic"}


def parts_of(path: Path) -> tuple[str, ...]:
    """`('data', 'plan')` of src/tunesmith/data/plan.py."""
    return tuple(path.relative_to(ROOT).with_suffix("").parts)


def type_checking_nodes(tree: ast.Module) -> set[ast.AST]:
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports_of(path: Path) -> Iterator[tuple[str, int, bool, bool]]:
    """(module, line, whether at the top of the file, whether for type checking only) of each import."""
    tree = ast.parse(path.read_text())
    for_types = type_checking_nodes(tree)
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" if node.module == "tunesmith" else str(node.module) for alias in node.names]
        else:
            continue
        for name in names:
            yield name, node.lineno, node in top, node in for_types


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(parts_of(path)))
def test_a_module_imports_only_what_lies_below(path: Path) -> None:
    own = parts_of(path)
    if own[0] == "__init__":
        return  # the public names come from everywhere
    assert own[0] in LEVELS, f"{own[0]} has no level: give it one here and in docs/architecture.md"
    level = LEVELS[own[0]]
    wrong = []
    for name, line, _, for_types in imports_of(path):
        inner = name.split(".")
        if inner[0] != "tunesmith" or len(inner) == 1 or for_types or inner[1] == "__version__" or inner[1] not in LEVELS:
            continue
        same = inner[1] == own[0]
        above = LEVELS[inner[1]] > level or (own[0] == "cli" and LEVELS[inner[1]] not in (0, 4))
        beside = LEVELS[inner[1]] == level == 2 and not same
        sibling = own[0] in ("tasks", "methods") and same and len(inner) > 2 and inner[2] != own[1]
        if above or beside or sibling:
            wrong.append(f"{path}:{line} imports {name}")
    assert not wrong


def test_the_lowest_level_needs_only_yaml_and_pydantic() -> None:
    import sys

    for path in FILES:
        if LEVELS.get(parts_of(path)[0]) != 0:
            continue
        for name, line, _, for_types in imports_of(path):
            package = name.split(".")[0]
            allowed = package in sys.stdlib_module_names or package in LEVEL_0_PACKAGES or package == "tunesmith"
            assert allowed or for_types, f"{path}:{line} imports {name}"


def test_tasks_and_methods_import_the_heavy_libraries_inside_functions() -> None:
    for path in FILES:
        if parts_of(path)[0] not in ("tasks", "methods"):
            continue
        for name, line, at_top, _ in imports_of(path):
            assert not (at_top and name.split(".")[0] in ("torch", "transformers", "peft", "datasets")), f"{path}:{line} imports {name}"


def test_peft_and_trl_have_one_owner_each() -> None:
    for path in FILES:
        for name, line, _, _ in imports_of(path):
            owners = OWNERS.get(name.split(".")[0])
            assert owners is None or parts_of(path)[0] in owners, f"{path}:{line} imports {name}"


def test_the_walk_sees_imports() -> None:
    """The rules above hold for nothing if the walk finds nothing."""
    found = {name.split(".")[0] for path in FILES for name, *_ in imports_of(path)}
    assert {"tunesmith", "torch", "transformers", "peft", "yaml", "pydantic"} <= found
    assert len(FILES) > 30
