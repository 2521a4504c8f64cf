"""A run file as a run folder keeps it: as it was written, comments and order included, without secrets.

text ─ nodes of YAML, and what `redacted` hides of their values ─> the same text with `***` in these places
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from dist_sft.config.document import BOM, Document, Path, compose, dotted, parse_yaml, shortened
from dist_sft.config.problems import Problem
from dist_sft.config.redact import hidden_values, redacted
from dist_sft.core.redact import HIDDEN

MASK = "***"
"""What stands in the place of a hidden value in a file."""
SHORTEST = 6
"""Characters of a secret that is looked for in comments, too."""
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.MULTILINE)
_SETTING = re.compile(r"#[#\s-]*([\w.-]+)\s*[:=]\s*(\S{6,})\s*")
"""A comment that is a setting, and no sentence."""
_ANCHOR = re.compile(r"&\S+\s+")

Spot = tuple[int, int, str]
"""From one character of a text to another one, and what stands there then."""


@dataclass(frozen=True)
class RunFile:
    """A run file: where it is, its text, and the values that this says."""

    path: FilePath
    text: str = field(repr=False)
    value: Any = field(repr=False)

    def without_secrets(self) -> str:
        """The text, but for values that are hidden everywhere else: of these only `***` is left."""
        public = redacted(self.value)
        shown = _masked(self.value, public)
        spots = dict[int, Spot]()
        node = compose(self.text, self.path.name)
        if node is not None:
            spots = {spot[0]: spot for spot in _spots(node, self.value, public, self.text)}
        secrets = [text for text in map(str, hidden_values(self.value, public)) if len(text) >= SHORTEST]
        scalars = sorted(_scalars(node)) if node is not None else []
        spots |= {spot[0]: spot for spot in _in_comments(self.text, scalars, secrets)}
        made = _replaced(self.text, sorted(spots.values()))
        if made != self.text and parse_yaml(made.removeprefix(BOM), self.path.name).value != shown:
            return str(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120))
        return made


def masked(value: Any) -> Any:
    """A copy of JSON values in which what is hidden everywhere else is `***`."""
    return _masked(value, redacted(value))


def _masked(value: Any, shown: Any) -> Any:
    if value == shown:
        return value
    if isinstance(value, dict) and isinstance(shown, dict):
        return {key: _masked(inner, shown.get(key, HIDDEN)) for key, inner in value.items()}
    if isinstance(value, list) and isinstance(shown, list):
        return [_masked(inner, hidden) for inner, hidden in zip(value, shown, strict=True)]
    if isinstance(value, dict):
        return {key: _masked(inner, HIDDEN) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, HIDDEN) for inner in value]
    return shown.replace(HIDDEN, MASK) if isinstance(shown, str) else MASK


def unfilled(document: Document) -> list[Problem]:
    """The values of a file of settings that are hidden in it, as in the copy that a run folder keeps."""
    fix = "write the value there, or give it as an override of that key"
    return [Problem(path, f"{shortened(dotted(path))} is hidden ({MASK})", fix) for path in _masks(document.value, ())]


def _masks(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _masks(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _masks(inner, (*path, i))
    elif isinstance(value, str) and (value == MASK or (MASK in value and "://" in value)):
        yield path


def _spots(node: yaml.Node, value: Any, shown: Any, text: str) -> Iterator[Spot]:
    """Where a value is hidden. shown: what `redacted` leaves of it."""
    if value == shown:
        return
    if isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            if key.value == "<<" and key.style is None:
                for each in inner.value if isinstance(inner, yaml.SequenceNode) else [inner]:
                    yield from _spots(each, value, shown, text)
            elif isinstance(value, dict) and key.value in value:
                left = shown.get(key.value, HIDDEN) if isinstance(shown, dict) else HIDDEN
                yield from _spots(inner, value[key.value], left, text)
    elif isinstance(node, yaml.SequenceNode):
        for i, inner in enumerate(node.value):
            left = shown[i] if isinstance(shown, list) else HIDDEN
            yield from _spots(inner, value[i], left, text)
    else:
        first, last = node.start_mark.index, node.end_mark.index
        if anchor := _ANCHOR.match(text, first, last):
            first = anchor.end()
        written = text[first:last]
        if shown == HIDDEN or not isinstance(shown, str):
            yield first, last, f"'{MASK}'" + written[len(written.rstrip()) :]  # behind a block are line breaks
        else:
            yield first, last, str(redacted(written)).replace(HIDDEN, MASK)


def _scalars(node: yaml.Node) -> set[tuple[int, int]]:
    """Where each scalar begins and ends: there `#` begins no comment."""
    found, left, seen = set(), [node], set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, yaml.ScalarNode):
            found.add((one.start_mark.index, one.end_mark.index))
        elif isinstance(one, yaml.MappingNode):
            left += [each for pair in one.value for each in pair]
        else:
            left += one.value
    return found


def _in_comments(text: str, scalars: list[tuple[int, int]], secrets: list[str]) -> Iterator[Spot]:
    """Secrets in comments: URLs, settings that were commented out, and what is hidden elsewhere."""
    begin = 0
    for first, last in [*scalars, (len(text), len(text))]:
        for match in _COMMENT.finditer(text, begin, first):
            comment = _plain_comment(match.group())
            for secret in secrets:
                comment = comment.replace(secret, MASK)
            if comment != match.group():
                yield match.start(), match.end(), comment
        begin = max(begin, last)


def _plain_comment(comment: str) -> str:
    if setting := _SETTING.fullmatch(comment):
        key, value = setting.groups()
        if redacted({key: value}) == {key: HIDDEN}:
            return comment[: setting.start(2)] + MASK + comment[setting.end(2) :]
    shown = str(redacted(comment))
    return shown if shown == comment else shown.replace(HIDDEN, MASK)


def _replaced(text: str, spots: list[Spot]) -> str:
    parts, begin = [], 0
    for first, last, new in spots:
        parts += [text[begin:first], new]
        begin = last
    return "".join([*parts, text[begin:]])
