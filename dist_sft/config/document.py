"""YAML text -> plain values, and the line of each.

Scalars follow YAML 1.2, as people expect them: `1e-5` is a number, only true and false are booleans, dates and 12:30
stay text, 010 is ten. Keys are always text. A text may come from anywhere, so its size, its depth and what its aliases
grow to are bounded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import yaml

from dist_sft.core.errors import ConfigError, plainly

Path = tuple[str | int, ...]
"""Keys and list indices from the root to a value."""

_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_HEX = re.compile(r"^0x[0-9a-fA-F][0-9a-fA-F_]*$")
_FLOAT = re.compile(
    r"^[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)
_QUOTED = re.compile(r"'([^']*)'")
_SURROGATE = re.compile("[\ud800-\udfff]")

MOST_BYTES = 256 << 10
"""Of a file of settings."""
BOM = "\ufeff"
MOST_VALUES = 10_000
"""Values and keys of a file, with aliases (*) written out."""
MOST_DIGITS = 100
MOST_SHOWN = 100
"""Characters of a user's text in a message."""
MOST_DEPTH = 64
"""Sections and lists within one another."""


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
    node = compose(text, name, lines=lines)
    locations: dict[Path, str] = {}
    return Document(None if node is None else _Builder(name, lines, locations).build(node, (), ()), locations)


def compose(text: str, name: str, *, lines: bool = True) -> yaml.Node | None:
    """The nodes of one YAML document, which know their places in the text. Arguments and errors: see `parse_yaml`."""
    try:
        node: yaml.Node | None = _Loader(text, name, lines).get_single_node()
        return node
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, name, lines) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not YAML: the control character U+{ord(text[error.position]):04X}"
        raise ConfigError(what, where=f"{name}:{line}" if lines else name, fix="remove it") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as "\UFFFFFFFF", a character beyond Unicode
        raise ConfigError(f"not YAML: {error}", where=name, fix="check what follows a backslash in quotes") from None


def read_settings(path: FilePath, kind: str) -> str:
    """The text of a file of settings, without a byte order mark. Raises what `read_whole` raises."""
    return read_whole(path, kind).removeprefix(BOM)


def read_whole(path: FilePath, kind: str) -> str:
    """The text of a file of settings.

    Args:
        kind: what it is, e.g. "the run file".
    Raises:
        ConfigError: it cannot be read, is too long, or is not UTF-8.
        FileNotFoundError: it does not exist.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{kind} cannot be read: {what}", where=str(path), fix="check the path") from None
    if len(raw) > MOST_BYTES:
        raise ConfigError(
            f"{kind} is longer than {MOST_BYTES >> 10} KiB", where=str(path), fix="name a file of settings, not of data"
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8", where=f"{path}:{line}", fix="save the file as UTF-8") from None


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
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses tags, whose meaning nobody would read, and nesting without end."""

    def __init__(self, text: str, name: str, lines: bool) -> None:
        self.depth, self.nodes, self.file, self.lines = 0, 0, name, lines
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = f"{self.file}:{event.start_mark.line + 1}" if self.lines else self.file
        if tag := getattr(event, "tag", None):
            named = tag if tag.startswith("tag:yaml.org,") else "(!)"  # of the user's own it may be a secret
            raise ConfigError(
                f"the tag {named} has no meaning here", where=where, fix="remove it; quotes make a value text"
            )
        if self.depth == MOST_DEPTH:
            raise ConfigError(f"more than {MOST_DEPTH} levels within one another", where=where, fix="nest less")
        self.nodes += 1
        if self.nodes > 2 * MOST_VALUES:  # a key and a value each: composing more would take long
            raise ConfigError(f"more than {MOST_VALUES:,} values", where=where, fix="name a file of settings")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Builder:
    """Walks YAML nodes into dicts, lists and scalars, noting the place of each."""

    def __init__(self, name: str, lines: bool, locations: dict[Path, str]) -> None:
        self.name, self.lines, self.locations, self.values = name, lines, locations, 0

    def location(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name

    def build(self, node: yaml.Node, path: Path, inside: tuple[int, ...]) -> Any:
        self.locations.setdefault(path, self.location(node))
        inside = self.enter(node, inside)
        if isinstance(node, yaml.MappingNode):
            result = {}
            for key, value in self.pairs(node, path, inside).values():
                self.locations[(*path, key.value)] = self.location(key)
                result[key.value] = self.build(value, (*path, key.value), inside)
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), inside) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node)

    def enter(self, node: yaml.Node, inside: tuple[int, ...]) -> tuple[int, ...]:
        """The nodes around what is in this one. Raises ConfigError where there is no end of them."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise ConfigError(
                f"more than {MOST_VALUES:,} values", where=self.location(node), fix="name a file of settings"
            )
        if id(node) in inside:
            raise ConfigError(
                "an anchor (&) contains itself (*)", where=self.location(node), fix="write the values out"
            )
        if len(inside) == MOST_DEPTH:
            raise ConfigError(
                f"more than {MOST_DEPTH} levels within one another", where=self.location(node), fix="nest less"
            )
        return (*inside, id(node))

    def pairs(
        self, node: yaml.MappingNode, path: Path, inside: tuple[int, ...]
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key and value by name. A mapping's own keys win over those that `<<` merges, and of these the first."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be text", where=self.location(key), fix="quote it")
            if key.value == "<<" and key.style is None:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if key.value in own:
                first = own[key.value][0].start_mark.line + 1
                raise ConfigError(
                    f"{shortened(dotted((*path, key.value)))} stands twice, first on line {first}",
                    where=self.location(key),
                    fix="remove one of them",
                )
            own[self.text(key)] = (key, value)
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                raise ConfigError(
                    "<< merges a section, and this is none", where=self.location(other), fix="write << : *anchor"
                )
            own = self.pairs(other, path, self.enter(other, inside)) | own
        return own

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.style is not None:
            return self.text(node)
        if _INT.match(node.value) or _HEX.match(node.value):
            number = scalar(node.value) if len(node.value) < MOST_DIGITS else 1 << 64
            if not -(1 << 63) <= number < 1 << 64:
                what = "a whole number beyond 64 bits"
                raise ConfigError(what, where=self.location(node), fix="write a smaller one, or text in quotes")
            return number
        return scalar(self.text(node))

    def text(self, node: yaml.ScalarNode) -> str:
        if _SURROGATE.search(node.value):
            raise ConfigError(
                "a text with half a character (a lone surrogate)", where=self.location(node), fix="write the character"
            )
        return str(node.value)


def dotted(path: Path) -> str:
    """('data', 'sources', 0, 'path') -> "data.sources.0.path"."""
    return ".".join(str(part) for part in path)


def shortened(text: str) -> str:
    """A text of the user's for one line of a message."""
    return plainly(text, MOST_SHOWN)


def _unnamed(quoted: re.Match[str]) -> str:
    """What PyYAML quotes: its own words and single letters stay, names of the text may be secrets."""
    return quoted[0] if len(quoted[1]) < 2 or re.fullmatch("<[a-z ]+>", quoted[1]) else "a name"


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str, lines: bool) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark and lines else name
    all_lines = text.splitlines()
    line = all_lines[mark.line] if mark and mark.line < len(all_lines) else ""
    if "\t" in line[: mark.column + 1 if mark else 0] or "\\t" in str(error.problem):
        return ConfigError("a tab where YAML wants spaces", where=where, fix="indent with spaces")
    what = ", ".join(_QUOTED.sub(_unnamed, part) for part in (error.context, error.problem) if part)
    return ConfigError(f"not YAML: {what}", where=where, fix="check indentation, colons, quotes and brackets")
