"""A run file and its overrides -> RunConfig, or one error that names everything wrong with them.

run.yaml ─ document ─> values and lines ─ overrides, preset ─> values ─ pydantic, consistency ─> RunConfig
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_sft.config.consistency import contradictions
from dist_sft.config.deepspeed_file import find_deepspeed
from dist_sft.config.document import Document, parse_yaml
from dist_sft.config.overrides import apply_overrides
from dist_sft.config.presets import apply_preset
from dist_sft.config.problems import as_error, from_pydantic
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import ConfigError


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, put `key=value` overrides into it, check all of it.

    Paths in it stay relative to the current folder, except `deepspeed:`, which becomes the path of the JSON that was
    found (see `find_deepspeed`).

    Raises:
        ConfigError: with every problem found, each at file:line or at its override.
    """
    document = apply_preset(apply_overrides(_read(Path(path)), overrides))
    config = validate(document)
    if isinstance(config.deepspeed, str):
        found = find_deepspeed(config.deepspeed, Path(path).parent, document.where(("deepspeed",)))
        config = config.model_copy(update={"deepspeed": str(found)})
    return config


def validate(document: Document) -> RunConfig:
    """Values -> RunConfig. Strict: no text becomes a number, no true becomes 1.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        config = RunConfig.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        raise as_error(from_pydantic(error, document), document) from None
    problems = contradictions(config)
    if problems:
        raise as_error(problems, document)
    return config


def _read(path: Path) -> Document:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such run file", where=str(path), fix=_others(path)) from None
    except OSError as error:
        raise ConfigError(f"the run file cannot be read: {error.strerror}", where=str(path)) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8", where=f"{path}:{line}", fix="save the file as UTF-8") from None
    document = parse_yaml(text, str(path))
    if document.value is None:
        raise ConfigError("the run file is empty", where=str(path), fix="it needs at least model, data and train")
    return _mapping(document, path)


def _mapping(document: Document, path: Path) -> Document:
    value: Any = document.value
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ConfigError(f"{kind}, not sections of key: value", where=f"{path}:1", fix="start with model: {path: ...}")
    return document


def _others(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    return f"there are {', '.join(names[:5])} in {path.parent}" if names else "check the path"
