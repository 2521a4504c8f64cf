"""YAML text -> plain values, and the line of each.

Scalars follow YAML 1.2, as people expect them: `1e-5` is a number, only true and false are booleans, dates and 12:30
stay text, 010 is ten. Keys are always text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from dist_sft.core.errors import ConfigError

Path = tuple[str | int, ...]
"""Keys and list indices from the root to a value."""

_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?\d[\d_]*$")
_HEX = re.compile(r"^0x[0-9a-fA-F_]+$")
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


@dataclass(frozen=True)
class Document:
    """A parsed text: its value, and for each value (and key) where it stands, e.g. "run.yaml:9"."""

    value: Any
    locations: Mapping[Path, str]

    def where(self, path: Path) -> str:
        """The place of a value, or of the nearest section around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.locations:
                return self.locations[path[:length]]
        return ""


def parse_yaml(text: str, name: str, *, lines: bool = True) -> Document:
    """Read one YAML document.

    Args:
        name: of the file, or of the override, as errors say it.
        lines: whether locations carry line numbers (not for an override, which has one line).
    Raises:
        ConfigError: not YAML, or a key that stands twice, or an anchor that contains itself.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, name, lines) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}", where=name) from None
    locations: dict[Path, str] = {}
    builder = _Builder(loader, name, lines, locations)
    return Document(None if node is None else builder.build(node, (), ()), locations)


def scalar(text: str) -> Any:
    """A plain (unquoted) YAML 1.2 scalar as a Python value."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _HEX.match(text):
        return int(text.replace("_", ""), 16)
    if _FLOAT.match(text):
        return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Builder:
    """Walks YAML nodes into dicts, lists and scalars, noting the place of each."""

    def __init__(self, loader: yaml.SafeLoader, name: str, lines: bool, locations: dict[Path, str]) -> None:
        self.loader, self.name, self.lines, self.locations = loader, name, lines, locations

    def location(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name

    def build(self, node: yaml.Node, path: Path, inside: tuple[int, ...]) -> Any:
        self.locations.setdefault(path, self.location(node))
        if id(node) in inside:
            raise ConfigError(
                "an anchor (&) contains itself (*)", where=self.location(node), fix="write the values out"
            )
        inside = (*inside, id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, inside)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), inside) for i, item in enumerate(node.value)]
        return scalar(node.value) if node.style is None else node.value  # type: ignore[attr-defined]  # a style is a kind of quotes

    def mapping(self, node: yaml.MappingNode, path: Path, inside: tuple[int, ...]) -> dict[str, Any]:
        self.refuse_twins(node, path)
        self.loader.flatten_mapping(node)  # `<<: *anchor` comes first, so own keys win
        result = {}
        for key, value in node.value:
            self.locations[(*path, key.value)] = self.location(key)
            result[key.value] = self.build(value, (*path, key.value), inside)
        return result

    def refuse_twins(self, node: yaml.MappingNode, path: Path) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be text", where=self.location(key), fix="quote it")
            if key.value in seen and key.value != "<<":
                raise ConfigError(
                    f"{dotted((*path, key.value))} stands twice, first on line {seen[key.value]}",
                    where=self.location(key),
                    fix="remove one of them",
                )
            seen[key.value] = key.start_mark.line + 1


def dotted(path: Path) -> str:
    """('data', 'sources', 0, 'path') -> "data.sources.0.path"."""
    return ".".join(str(part) for part in path)


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str, lines: bool) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark and lines else name
    all_lines = text.splitlines()
    line = all_lines[mark.line] if mark and mark.line < len(all_lines) else ""
    if "\t" in line[: mark.column + 1 if mark else 0] or "\\t" in str(error.problem):
        return ConfigError("a tab where YAML wants spaces", where=where, fix="indent with spaces")
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return ConfigError(f"not YAML: {what}", where=where, fix="check indentation, colons, quotes and brackets")
