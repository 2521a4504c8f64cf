"""What of a configuration may leave the machine: no secret, in no key and in no URL.

Of a URL that is its scheme, host and path, and parameters that are known to be harmless; all else is hidden.
"""

import re
from collections.abc import Iterator
from typing import Any

from dist_sft.config.document import Path, dotted

HIDDEN = "<hidden>"

_SECRET_WORDS = re.compile(
    r"(^|[_\-.])(\w*key|tokens?|secrets?|\w*pass(word|wd|phrase)?s?|\w*pwd|pat|pin|otp|jwt|bearer|cookies?|sas|dsn|"
    r"auth(orization)?|credentials?|creds?|signature|webhook|session_?id)($|[_\-.])"
)
_OPEN = frozenset({"control_tokens"})
"""Settings that only sound like secrets: each has a few words to choose from."""
_WITHOUT_USERS = frozenset({"hf", "abfs", "abfss", "wasb", "wasbs"})
"""Schemes whose `@` stands behind a container, or before a revision."""
_HARMLESS = frozenset(
    {"alt", "anon", "branch", "dl", "download", "endpoint", "format", "generation", "lfs", "raw", "ref", "region",
     "revision", "split", "version", "versionid"}
)  # fmt: skip
"""Parameters of a URL that say which file is meant."""
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HOST = re.compile(r"([\w-]+\.[\w.-]+|localhost|\[[0-9a-fA-F:.]+\])(:\d{0,5})?", re.ASCII)
"""A host that may have a port behind it."""
_SHORT_HOST = re.compile(r"[\w-]+:\d{0,5}", re.ASCII)
"""A host of one word with its port, `head:10001`; a user and a password of digits where a `@` follows."""
_URL = re.compile(r"(?<![\w+.-])[A-Za-z][\w+.-]*://[^\s'\"<>]+")


def redacted(value: Any) -> Any:
    """A copy that may leave the machine: values of keys that sound like secrets, and secrets in URLs, are hidden."""
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
    """A text whose URLs carry neither user info, nor a fragment, nor parameters that may be secret."""
    return _URL.sub(lambda match: _redact_url(match.group()), text)


def _is_secret(key: str, value: Any) -> bool:
    """Numbers are never secrets: `eval.every`, `tokens_per_pack` and the like stay readable."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    if value is None or isinstance(value, (bool, int, float)) or key in _OPEN:
        return False
    return bool(_SECRET_WORDS.search(words))


def _redact_url(url: str) -> str:
    """Each part of a chained URL (`zip://x.jsonl::s3://bucket/x.zip`) by itself."""
    return "::".join(_redact_one(part) for part in re.split(r"::(?=[A-Za-z][\w+.-]*://)", url))


def _redact_one(url: str) -> str:
    """Scheme, host and path, and what of the query is known to be harmless."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _WITHOUT_USERS:
        rest = _without_user(rest)
    rest, hash_, _ = rest.partition("#")
    path, mark, query = rest.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&"))
    shown = (f"{key}{eq}{value if _is_harmless(key, value) else HIDDEN}" for key, eq, value in pairs)
    return f"{scheme}://{path}{mark}{'&'.join(shown) if mark else ''}{hash_ and f'#{HIDDEN}'}"


def _without_user(rest: str) -> str:
    """A URL behind its scheme, without user and password. A password may hold `/`, `?`, `#` and `@`."""
    authority, at = rest.partition("/")[0], rest.rfind("@")
    host = authority.partition("?")[0].partition("#")[0]
    is_host = _HOST.fullmatch(host) or (at < 0 and _SHORT_HOST.fullmatch(host))
    has_password = ":" in host and not is_host
    if at >= 0 and (at < len(authority) or has_password):
        return f"{HIDDEN}@{rest[at + 1 :]}"
    return HIDDEN if has_password else rest  # its end was cut off


def _is_harmless(key: str, value: str) -> bool:
    return not value or (key.lower() in _HARMLESS and _WORD.fullmatch(value) is not None)
