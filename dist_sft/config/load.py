"""A file and its overrides -> checked settings, or one error that names everything wrong with them.

run.yaml ─ document ─> values and lines ─ overrides ─> values ─ `Root.of` ─> RunConfig
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dist_sft.config.deepspeed_file import find_deepspeed
from dist_sft.config.document import BOM, Document, parse_yaml, read_whole
from dist_sft.config.kept import RunFile, unfilled
from dist_sft.config.overrides import apply_overrides
from dist_sft.config.problems import as_error
from dist_sft.config.redact import remember_secrets
from dist_sft.config.root import Root, from_values
from dist_sft.config.run_config import RunConfig, with_shorthand
from dist_sft.core.errors import ConfigError

Source = Path | str | Mapping[str, Any]
"""A file, or the settings themselves."""
RootT = TypeVar("RootT", bound=Root)


def load_config(run: Source, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, or take a mapping of its settings; put `key=value` overrides into it; check all of it.

    Paths in it stay relative to the current folder, except `deepspeed:`, which becomes the path of the JSON that was
    found (see `find_deepspeed`).

    Raises:
        ConfigError: with every problem found, each at file:line, at its override, or at "values".
    """
    return load_run(run, overrides)[0]


def load_run(run: Source, overrides: Sequence[str] = ()) -> tuple[RunConfig, RunFile | None]:
    """As `load_config`, with the run file as it was written; None for a mapping."""
    document, written = _opened(run, RunConfig)
    document = apply_overrides(document, overrides, RunConfig, with_shorthand)
    remember_secrets(document.value)
    if hidden := unfilled(document):
        raise as_error(hidden, document, RunConfig.file)
    config = RunConfig.of(document)
    if isinstance(config.deepspeed, str):
        beside = Path() if isinstance(run, Mapping) else Path(run).parent
        found = find_deepspeed(config.deepspeed, beside, document.where(("deepspeed",)))
        config = config.model_copy(update={"deepspeed": str(found)})
    return config, written


def load(root: type[RootT], source: Source, overrides: Sequence[str] = ()) -> RootT:
    """Any kind of file of settings, with the errors of a run file. Raises ConfigError."""
    document = apply_overrides(_opened(source, root)[0], overrides, root)
    remember_secrets(document.value)
    return root.of(document)


def _opened(source: Source, root: type[Root]) -> tuple[Document, RunFile | None]:
    """The values of a file or mapping, and the file. Raises ConfigError where it holds no settings."""
    if isinstance(source, Mapping):
        return from_values(dict(source)), None
    path = Path(source)
    try:
        text = read_whole(path, root.file)
    except FileNotFoundError:
        raise ConfigError(f"no such {root.file.removeprefix('the ')}", where=str(path), fix=_others(path)) from None
    document = _parsed(text.removeprefix(BOM), path, root)
    return document, RunFile(path.absolute(), text, document.value)


def _parsed(text: str, path: Path, root: type[Root]) -> Document:
    document = parse_yaml(text, str(path))
    needed = [name for name, field in root.model_fields.items() if field.is_required()]
    if document.value is None:
        listed = " and ".join(filter(None, [", ".join(needed[:-1]), *needed[-1:]]))
        fix = f"it needs at least {listed}" if needed else ""
        raise ConfigError(f"{root.file} is empty", where=str(path), fix=fix)
    if not isinstance(document.value, dict):
        kind = "a list" if isinstance(document.value, list) else "a single value"
        first = next(iter(needed or root.model_fields))
        fix = f"start with a section, e.g. {first}:"
        raise ConfigError(f"{kind}, not sections of key: value", where=f"{path}:1", fix=fix)
    return document


def _others(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    return f"there are {', '.join(names[:5])} in {path.parent}" if names else "check the path"
