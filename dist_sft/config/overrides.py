"""`key=value` from the command line, put into the values of a run file.

Keys are dotted, with list indices (`data.sources.0.path=x.jsonl`); values are YAML (`model.tuning={kind: lora}`).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from dist_sft.config.document import MOST_DEPTH, Document, Path, dotted, parse_yaml, shortened
from dist_sft.config.run_config import RunConfig
from dist_sft.config.section import Section
from dist_sft.config.settings import is_setting, only_settings
from dist_sft.core.errors import ConfigError
from dist_sft.core.redact import redact_value

_INDEX = re.compile("[0-9]{1,9}")
_KEY = re.compile(r"[\w/-]{1,40}(\.[\w/-]{1,40}){,63}", re.ASCII)
"""What can be a key: text of another kind may be a secret."""


def apply_overrides(
    document: Document,
    overrides: Sequence[str],
    root: type[Section] = RunConfig,
    written_out: Callable[[Any], Any] = lambda value: value,
) -> Document:
    """A document with the overrides in it, in order; what they set is placed at "override 'key=value'".

    Of one that sets something else than settings of ours no value is repeated.

    root: of the file.  written_out: writes out what may be written short, so that an override reaches into it.

    Raises:
        ConfigError: not key=value, a value that is not YAML, or a key that leads through a plain value.
    """
    value, locations = written_out(document.value), dict(document.locations)
    for number, override in enumerate(overrides, 1):
        where = _named(override, number, root, value)
        path, new = _parse(override, where)
        if only_settings(root, written_out(_set(value, path, 0, new.value, where)), path):
            where = f"override '{shortened(redact_value(override))}'"
            new = Document(new.value, dict.fromkeys(new.locations, where))
        for old in [place for place in locations if place[: len(path)] == path]:
            del locations[old]
        for length in range(1, len(path)):
            locations.setdefault(path[:length], where)  # sections that the override makes
        for key, place in new.locations.items():
            locations[(*path, *key)] = place
        value = written_out(_set(value, path, 0, new.value, where))
    return Document(value, locations)


def _named(override: str, number: int, root: type[Section], value: Any) -> str:
    """What an override is called before its value is judged: by its key, where that can be one."""
    key, equals, _ = override.partition("=")
    path = _path(key)
    if not _KEY.fullmatch(key.strip()) or not (equals or is_setting(root, path, value)):
        return f"override {number}"
    return f"override '{shortened(key)}{equals and '=...'}'"


def _path(key: str) -> Path:
    return tuple(int(part) if _INDEX.fullmatch(part) else part for part in key.strip().split("."))


def _parse(override: str, where: str) -> tuple[Path, Document]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError("not key=value", where=where, fix="write e.g. train.learning_rate=1e-5")
    if len(parts) > MOST_DEPTH:
        raise ConfigError(f"more than {MOST_DEPTH} levels within one another", where=where, fix="name a setting")
    return _path(key), parse_yaml(text, where, lines=False)


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
    raise ConfigError(f"{here} is a single value, which has no parts", where=where, fix=f"set {here} itself")
