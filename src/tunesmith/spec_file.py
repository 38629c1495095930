"""Reads the text of a spec, YAML or JSON, into plain values, and remembers the line of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import InputError, Problem

MOST_DEPTH = 30
"""Levels of nesting; a spec needs five."""
MOST_VALUES = 100_000
"""Values, each alias counted as often as it is used."""
CORE_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "str", "map", "seq"))
SURROGATE = re.compile("[\ud800-\udfff]")

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of its version 1.2: `2e-5` is a number, `no` and `on` are words; nested no deeper than a spec needs."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes a node and all in it."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"values nested more than {MOST_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, *([""] if _tag == "null" else [])]
    )
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(str(node.value).lower().replace(".inf", "inf").replace(".nan", "nan")),
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))


class Source:
    """A spec as it was written: plain values, where each key stands, and what is wrong with the writing."""

    def __init__(self, values: dict[str, Any], name: str, folder: Path) -> None:
        self.values = values
        self.name = name
        self.folder = folder
        self.places: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []

    def place(self, path: Sequence[str | int]) -> str:
        """`file:line` or `override key=value` of the innermost part of `path` that was written down."""
        for end in range(len(path), -1, -1):
            found = self.places.get(tuple(path[:end]))
            if found is not None:
                return found
        return self.name

    @property
    def places_by_key(self) -> dict[str, str]:
        """The places by dotted key."""
        return {".".join(map(str, path)): place for path, place in self.places.items() if path}


def parse_source(text: str, name: str, folder: Path) -> Source:
    """The plain values of a spec's text; JSON is read as the YAML that it is.

    Raises InputError when it cannot be read on; lesser mistakes are kept in `problems`.
    """
    is_json = name.lower().endswith(".json")
    node = _compose(text.replace("\t", " ") if is_json else text, name, "valid JSON" if is_json else "valid YAML")
    if not isinstance(node, yaml.MappingNode):
        found = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}.get(type(node), "an empty file")
        fix = "start with `data:`; `tunesmith init DATA` writes a spec"
        raise InputError("spec.syntax", "a spec is a mapping of sections", where=f"{name}:1", found=found, fix=fix)
    read = Source({}, name, folder)
    read.values = _Construction(read, f"{name}:").value(node, ())
    return read


def parse_override(text: str, path: KeyPath, read: Source, override: str) -> Any:
    """The value of an override, whose places and problems go to `read`. Raises InputError when it cannot be read."""
    if len(text) == 1 and not text.isalnum() and text != "~":
        # a delimiter: to YAML most of these mean something
        read.places[path] = f"override {override}"
        return text
    where = f"override {override if len(override) <= 200 else override[:200] + '...'}"
    return _Construction(read, where, has_lines=False).value(_compose(text, where, "a valid value"), path) if text.strip() else ""


def _compose(text: str, name: str, wanted: str) -> Any:
    where, is_file = name, not name.startswith("override ")
    code = "spec.syntax" if is_file else "spec.override"
    problem = f"the spec is not {wanted}" if is_file else f"the override is not {wanted}"
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        line = _error_line(error, text)
        where = f"{name}:{line}" if line and is_file else name
        raise InputError(code, problem, where=where, found=_yaml_problem(error), fix=_yaml_fix(error, wanted)) from None


def _error_line(error: yaml.YAMLError, text: str) -> int:
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, int(error.position)) + 1
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return min(mark.line, text.rstrip().count("\n")) + 1 if mark else 0


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"the character U+{code:04X} may not stand in a spec"
    mark, begun = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    found = str(getattr(error, "problem", None) or error)
    if begun is not None and mark is not None and begun.line < mark.line:
        found += f", {error.context} that begins on line {begun.line + 1}"  # type: ignore[attr-defined]
    return found


def _yaml_fix(error: yaml.YAMLError, wanted: str) -> str:
    found = str(getattr(error, "problem", ""))
    if "nested" in found:
        return f"a spec has at most {MOST_DEPTH} levels"
    if "'\\t'" in found:
        return "indent with spaces: YAML takes no tabs"
    if "undefined alias" in found or "found character" in found:
        return "write the value in quotes"
    if wanted == "valid JSON":
        return "mend the line, or the one before it: a comma or a bracket may be missing"
    return "mend the line, or the one before it: the indentation, a bracket or a quote; values with `: ` or ` #` need quotes"


class _Construction:
    """Turns nodes into plain values, noting the place of each."""

    def __init__(self, read: Source, where: str, has_lines: bool = True) -> None:
        self.read = read
        self.where = where
        self.has_lines = has_lines
        self._loader = _Loader("")
        self._num_values = 0

    def _place(self, node: yaml.Node) -> str:
        return f"{self.where}{node.start_mark.line + 1}" if self.has_lines else self.where

    def _note(self, code: str, problem: str, node: yaml.Node, found: str, fix: str) -> None:
        self.read.problems.append(Problem(code, problem, self._place(node), found, fix))

    def value(self, node: yaml.Node | None, path: KeyPath) -> Any:
        """The plain value of a node that stands at `path`."""
        if node is None:
            return None
        self.read.places[path] = self._place(node)
        self._num_values += 1
        if len(path) > MOST_DEPTH or self._num_values > MOST_VALUES:
            fix = f"a spec has at most {MOST_DEPTH} levels and {MOST_VALUES:,} values; an alias (*name) may not contain itself"
            raise InputError("spec.syntax", "the values are nested too deeply or unfold too far", where=self._place(node), fix=fix)
        if node.tag not in CORE_TAGS:
            self._note(
                "spec.syntax", "a spec has no YAML tags", node, node.tag.replace("tag:yaml.org,2002:", "!!"), "write the plain value"
            )
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._note("spec.syntax", "a key is a list or a mapping", key_node, ".".join(map(str, path)), "a key is one word")
            elif key_node.tag == "tag:yaml.org,2002:merge":
                self._note("spec.syntax", "a spec has no merge keys", key_node, "<<", "write the settings out")
            elif key_node.value in values:
                name = ".".join(map(str, (*path, key_node.value)))
                first = self.read.places[(*path, key_node.value)]
                self._note("spec.duplicate_key", f"{name} is said twice", key_node, f"first at {first}", "keep one")
            else:
                key = str(self._whole(key_node, key_node.value))
                values[key] = self.value(value_node, (*path, key))
                self.read.places[(*path, key)] = self._place(key_node)
        return values

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError, AttributeError):
            self._note("spec.syntax", "a value cannot be read", node, str(node.value)[:60], "write a plain value, or text in quotes")
            return None
        return self._whole(node, value) if isinstance(value, str) else value

    def _whole(self, node: yaml.Node, text: str) -> str | None:
        """The text with its surrogate pairs joined: JSON writes a character beyond U+FFFF as two escapes."""
        if not SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._note("spec.syntax", "an escape is half a surrogate pair", node, ascii(text)[:60], "write the character itself")
            return None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else, such as `no` or `2e5`."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump_values(value: Any, **options: Any) -> str:
    """YAML text of plain values that `parse_source` reads back as they are; options are those of `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, **options))
