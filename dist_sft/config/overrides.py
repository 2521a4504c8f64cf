"""`key=value` from the command line, put into the values of a run file.

Keys are dotted, with list indices (`data.sources.0.path=x.jsonl`); values are YAML (`model.tuning={kind: lora}`).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from dist_sft.config.document import MOST_DEPTH, Document, Path, dotted, parse_yaml, shortened
from dist_sft.core.errors import ConfigError

_INDEX = re.compile("[0-9]{1,9}")


def apply_overrides(
    document: Document, overrides: Sequence[str], written_out: Callable[[Any], Any] = lambda value: value
) -> Document:
    """A document with the overrides in it, in order; what they set is placed at "override 'key=value'".

    written_out: writes out what may be written short, so that an override reaches into it.

    Raises:
        ConfigError: not key=value, a value that is not YAML, or a key that leads through a plain value.
    """
    value, locations = written_out(document.value), dict(document.locations)
    for override in overrides:
        where = f"override '{shortened(override)}'"
        path, new = _parse(override, where)
        for old in [place for place in locations if place[: len(path)] == path]:
            del locations[old]
        for length in range(1, len(path)):
            locations.setdefault(path[:length], where)  # sections that the override makes
        for key, place in new.locations.items():
            locations[(*path, *key)] = place
        value = written_out(_set(value, path, 0, new.value, where))
    return Document(value, locations)


def _parse(override: str, where: str) -> tuple[Path, Document]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError("not key=value", where=where, fix="write e.g. train.learning_rate=1e-5")
    if len(parts) > MOST_DEPTH:
        raise ConfigError(f"more than {MOST_DEPTH} levels within one another", where=where, fix="name a setting")
    return tuple(int(part) if _INDEX.fullmatch(part) else part for part in parts), parse_yaml(text, where, lines=False)


def _set(value: Any, path: Path, depth: int, new: Any, where: str) -> Any:
    """A copy of value in which the part at path[depth:] is new; missing sections are made."""
    if depth == len(path):
        return new
    part, here = path[depth], dotted(path[:depth])
    if isinstance(value, list):
        if not isinstance(part, int) or part > len(value):
            raise ConfigError(
                f"{here} has {len(value)} entries, and no entry {part}", where=where, fix=f"use 0 to {len(value)}"
            )
        inner = value[part] if part < len(value) else None
        return [*value[:part], _set(inner, path, depth + 1, new, where), *value[part + 1 :]]
    if value is None or isinstance(value, dict):
        section = value or {}
        return {**section, str(part): _set(section.get(str(part)), path, depth + 1, new, where)}
    here = shortened(here)
    raise ConfigError(f"{here} is {shortened(repr(value))}, which has no parts", where=where, fix=f"set {here} itself")
