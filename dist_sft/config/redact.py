"""What of a configuration may leave the machine: what is known to be harmless is shown, and all else is hidden.

Harmless are the settings of ours: each by its place in a run file. What stands under a name of the user's (a variable
of pods, a key of another file) is shown where its name and its value say that it is no secret.
"""

import re
from collections.abc import Iterator
from typing import Any, get_origin

from dist_sft.config.document import Path, dotted
from dist_sft.config.run_config import RunConfig
from dist_sft.config.section import Section
from dist_sft.config.settings import chosen, sections_in
from dist_sft.core.redact import HIDDEN, is_empty, is_secret_name, redact_value, remember, secrets_in

_VARIABLES = re.compile(
    r"(NCCL|GLOO|UCX|UCC|FI|OMP|KMP|MKL|OPENBLAS|CUDA|NVIDIA|TORCH|PYTORCH|TORCHELASTIC|RAY|DS|TRITON|XDG|LC|MALLOC|PYTHON|OMPI)_"
    r"\w+|PYTHON\w+|HF_(HOME|HUB_\w+|DATASETS_\w+|ENDPOINT)|TRANSFORMERS_\w+|TOKENIZERS_\w+|WANDB_(MODE|DIR|PROJECT|"
    r"ENTITY|BASE_URL|SILENT|CACHE_DIR|DATA_DIR)|AWS_(REGION|DEFAULT_REGION|ENDPOINT_URL\w*|PROFILE)|DIST_SFT_\w+|"
    r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|HOME|USER|LANG|TZ|TMPDIR|[A-Za-z]+_PROXY|[a-z]+_proxy|RAYON_NUM_THREADS|\w+_(HOME|DIR)"
)
"""Variables of the libraries that a run uses, which hold no secret."""
_PLAIN = re.compile(r"(?i)true|false|yes|no|on|off|none|auto|[-+]?\d{1,3}(\.\d{1,3})?|(/[\w@+,-]{1,40}(\.\w{1,8})*)+/?")
"""Words, short numbers and paths, which are shown whatever their name."""
_STRICT = "environment"
"""Setting whose keys and values are the user's own."""


def redacted(value: Any) -> Any:
    """A copy that may leave the machine: of a run file's settings, of a run's facts, or of any other mapping.

    Hidden are values whose name sounds like a secret, variables that nothing here knows, and secrets in URLs.
    """
    return _shown(value, RunConfig, strict=True)


def secret_keys(value: Any) -> list[str]:
    """Dotted keys of what looks like a secret, e.g. "deepspeed.api_key" or "data.sources.1.path".

    Variables that nothing here knows are not among them: whoever sends them has said by that that they are none.
    """
    return [dotted(path) for path in _differing(value, _shown(value, RunConfig, strict=False), ())]


def remember_secrets(value: Any) -> None:
    """Let no text of this process show what is hidden of these settings from here on."""
    shown = _shown(value, RunConfig, strict=False)
    for given, _ in _pairs(value, shown):
        if isinstance(given, str):
            remember(secrets_in(given))
    remember(map(str, hidden_values(value, shown)))


def hidden_values(value: Any, shown: Any) -> Iterator[Any]:
    """Single values of which nothing is shown. shown: what was left of `value`, see `redacted`."""
    return (given for given, left in _pairs(value, shown) if given != left and left == HIDDEN)


def _shown(value: Any, section: type[Section] | None, strict: bool) -> Any:
    """A copy of what stands where a section of this kind may stand; None: under a name that is none of ours."""
    if isinstance(value, dict):
        return {key: _entry(str(key), inner, section, strict) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(inner, section, strict) for inner in value]
    return redact_value(value) if isinstance(value, str) else value


def _entry(key: str, value: Any, section: type[Section] | None, strict: bool) -> Any:
    field = section.model_fields.get(key) if section else None
    if section and field:
        inside = sections_in(field.annotation)
        if isinstance(value, (dict, list, tuple)) and not inside:
            return _of_user(value, strict and key == _STRICT)
        if get_origin(field.annotation) is dict and isinstance(value, dict):  # each key is a user's, and no value
            return {name: _shown(inner, inside[0], strict) if isinstance(inner, dict) else HIDDEN
                    for name, inner in value.items()}  # fmt: skip
        if isinstance(value, (list, tuple)):
            return [_shown(inner, chosen(inside, inner), strict) for inner in value]
        return _shown(value, chosen(inside, value) if inside else None, strict)
    if section is RunConfig and key in ("config", "learned"):
        return _shown(value, RunConfig, strict)
    return _under(key, value, strict and section not in (None, RunConfig))


def _of_user(value: Any, strict: bool) -> Any:
    """What stands in a setting whose keys are the user's."""
    if isinstance(value, dict):
        return {key: _under(str(key), inner, strict) for key, inner in value.items()}
    return (
        [_of_user(inner, strict) for inner in value] if isinstance(value, (list, tuple)) else _shown(value, None, False)
    )


def _under(name: str, value: Any, strict: bool) -> Any:
    """A value under a name that is no setting."""
    if is_empty(value):
        return value
    if is_secret_name(name) and not _is_count(name, value):
        return HIDDEN
    if isinstance(value, (dict, list, tuple)):
        return _of_user(value, strict)
    if strict and not _VARIABLES.fullmatch(name) and not _PLAIN.fullmatch(str(value)):
        return HIDDEN
    return redact_value(value) if isinstance(value, str) else value


def _is_count(name: str, value: Any) -> bool:
    """Of tokens of a text, as in max_new_tokens: 512."""
    return isinstance(value, (int, float)) and name.lower().endswith("tokens")


def _differing(value: Any, other: Any, path: Path) -> Iterator[Path]:
    if value == other:
        return
    if isinstance(value, dict) and isinstance(other, dict):
        for key, inner in value.items():
            yield from _differing(inner, other[key], (*path, key))
    elif isinstance(value, (list, tuple)) and isinstance(other, list):
        for i, inner in enumerate(value):
            yield from _differing(inner, other[i], (*path, i))
    else:
        yield path


def _pairs(value: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Each single value with what is shown of it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _pairs(inner, other[key] if isinstance(other, dict) else HIDDEN)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _pairs(inner, other[i] if isinstance(other, list) else HIDDEN)
    else:
        yield value, other
