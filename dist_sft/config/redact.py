"""What of a configuration may leave the machine: no secret, in no key and in no URL."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dist_sft.config.document import Path, dotted

HIDDEN = "<hidden>"

_SECRET_WORDS = re.compile(
    r"(^|[_\-.])(apikey|accesskey|key|tokens?|secrets?|passwords?|passwd|credentials?)($|[_\-.])"
)
_OPEN = frozenset({"control_tokens"})
"""Settings that only sound like secrets: each has a few words to choose from."""
_URL = re.compile(r"(?<![\w+.-])[A-Za-z][\w+.-]*://[^\s'\"<>]+")


def redacted(value: Any) -> Any:
    """A copy that may leave the machine: secret-looking keys' values, and user info and secrets in URLs, are hidden."""
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(str(key), inner) else redacted(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(inner) for inner in value]
    return redact_urls(value) if isinstance(value, str) else value


def secret_keys(value: Any) -> list[str]:
    """Dotted keys of what `redacted` hides, e.g. "deepspeed.api_key" or "sources.1.path"."""
    return [dotted(path) for path in _differing(value, redacted(value), ())]


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


def redact_urls(text: str) -> str:
    """A text whose URLs carry neither user info nor secret query parameters."""
    return _URL.sub(lambda match: _redact_url(match.group()), text)


def _is_secret(key: str, value: Any) -> bool:
    """Numbers are never secrets: `eval.every`, `tokens_per_pack` and the like stay readable."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    if value is None or isinstance(value, (bool, int, float)) or key in _OPEN:
        return False
    return bool(_SECRET_WORDS.search(words))


def _redact_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    if "@" in parts.netloc:
        parts = parts._replace(netloc=f"{HIDDEN}@{parts.netloc.rpartition('@')[2]}")
    if parts.query:
        pairs = (pair.partition("=") for pair in parts.query.split("&"))
        shown = (f"{key}={HIDDEN}" if _is_query_secret(key) else f"{key}{eq}{value}" for key, eq, value in pairs)
        parts = parts._replace(query="&".join(shown))
    return parts.geturl()


def _is_query_secret(key: str) -> bool:
    return _is_secret(key, "") or "signature" in key.lower() or key.lower() in ("sig", "auth", "credential")
