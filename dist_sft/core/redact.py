"""What of a text may be shown: the one function that errors, notes, records and messages go through.

Of a URL that is its scheme, host and path, and parameters that are known to be harmless. All else in it is hidden, and
so are values that stand behind a name which sounds like a secret (`password=...`), tokens whose form gives them away,
and the secrets that this process knows: those of its environment, and those that it found in its settings.
"""

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

HIDDEN = "<hidden>"

_SECRET_WORDS = re.compile(
    r"(^|[_\-.])(\w*key|\w*tokens?|\w*secrets?|\w*pass(word|wd|phrase|code)?s?|\w*pwd|pw|pat|pin|otp|totp|mfa|jwt|bearer|"
    r"\w*cookies?|sas|dsn|auth(orization|entication|z)?|\w*credentials?|creds?|sig(nature)?|webhooks?|session_?id|"
    r"\w*conn(ection)?_?str(ing)?|private|nonce|mnemonic|seed_?phrase|pem)"
    r"(_?(id|value|str|string|b64|base64|raw|\d+))?($|[_\-.])"
)
OPEN = frozenset(
    {"control_tokens", "token_share", "tokens_per_pack", "token_secret", "image_pull_secrets", "tokens", "max_tokens",
     "source_tokens", "token_shares", "eos_token", "bos_token", "pad_token", "unk_token", "RAY_AUTH_MODE",
     "RAY_AUTH_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN_PATH",
     "NCCL_IB_PKEY", "SSH_AUTH_SOCK", "pin_memory", "cpu_offload_use_pin_memory"}
)  # fmt: skip
"""Names that only sound like secrets: of settings with a few words to choose from, of numbers, of places."""

_WITHOUT_USERS = frozenset({"hf", "abfs", "abfss", "wasb", "wasbs"})
"""Schemes whose `@` stands behind a container, or before a revision."""
_HARMLESS = frozenset(
    {"alt", "anon", "branch", "dl", "download", "endpoint", "format", "generation", "lfs", "raw", "ref", "region",
     "revision", "split", "version", "versionid"}
)  # fmt: skip
"""Parameters of a URL that say which file is meant."""
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z][A-Za-z_.-]{0,39}", re.ASCII)
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{0,5})?", re.ASCII)
"""A host that may have a port behind it."""
_URL = re.compile(rf"(?<![\w+.-])[A-Za-z][\w+.-]*://(?:{HIDDEN}|[^\s'\"<>])+")
_HIDDEN_BEFORE = re.compile(rf"{HIDDEN}(:\d+)?:?")
"""A value that was hidden already, with a line number and a colon that a message has put behind its URL."""
_MARKS = ").,;:]}"
_WHOLE_URL = re.compile(r"([A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://.+", re.DOTALL)
_LOGIN = re.compile(r"(?!hub:)(?<![\w@:.+-])(?<![^/]/)[\w.+-]+:[^\s/@'\"<>]+@(?=[\w-]+\.[\w.-]+)")
"""name:password@host.org, as it stands without a scheme."""
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
    r"(sk|rk)[-_](?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{20,}|xox[a-z]-[\w-]{16,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|"
    r"dckr_pat_[\w-]{16,}|(AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|eyJ[\w-]{8,}\.[\w.-]{8,})|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|\Z)",
    re.DOTALL | re.ASCII,
)
"""Tokens of services that begin with a word of theirs, signed JSON, keys as PEM."""
_ASSIGNED = re.compile(
    r"(?<![\w/-])([\"']?)([A-Za-z_][\w.-]*)(\1\s*:\s*(?=[\"'])|=)([\"']?)(?![{<$.])([^\s\"',;&|)}\]<>]+)"
)
"""name=value, "name": "value"."""
_BEARER = re.compile(r"\b(Bearer|Basic)\s+(?=[A-Za-z0-9+/_.=-]*[0-9+/_=])[A-Za-z0-9+/_.=-]{16,}", re.IGNORECASE)

SHORTEST = 6
"""Characters of a secret that is looked for wherever it stands: a shorter one is a part of too many words."""
_known: set[str] = set()


def redact_value(text: str) -> str:
    """The text of a setting as it may be shown. What begins as a URL is one to its end, with blanks and quotes."""
    return redact_urls(_redact_url(text) if _WHOLE_URL.fullmatch(text) else text)


def redact_urls(text: str) -> str:
    """A text as it may be shown, without what this process happens to know: the same everywhere and always."""
    if "://" in text:
        text = _URL.sub(lambda match: _redact_in_text(match.group()), text)
    if "@" in text:
        text = _LOGIN.sub(f"{HIDDEN}@", text)
    text = _FORMS.sub(HIDDEN, text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(_assigned, text)
    return _BEARER.sub(lambda match: f"{match[1]} {HIDDEN}", text)


def scrubbed(text: str) -> str:
    """A text as it may leave this process: also without the secrets that it knows."""
    for secret in sorted({*_known, *_of_environment()}, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return redact_urls(text)


def remember(secrets: Iterable[str]) -> None:
    """Secrets that were found in settings: no text of this process shows them from here on."""
    for secret in secrets:
        _known.update(form for form in (secret, unquote(secret)) if _is_long(form))


def secrets_in(text: str) -> Iterator[str]:
    """What `redact_urls` hides of the URLs in a text."""
    urls = [text] if _WHOLE_URL.fullmatch(text) else _URL.findall(text)
    for url in urls:
        shown = _redact_url(url)
        pieces = [re.escape(piece) for piece in shown.split(HIDDEN)]
        if found := re.fullmatch("(.*)".join(pieces), url, re.DOTALL):
            for hidden in found.groups():
                yield hidden
                yield hidden.partition(":")[2]


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a key or a variable is called like a secret."""
    if name in OPEN or name.rpartition(".")[2] in OPEN:
        return False
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return _SECRET_WORDS.search(words) is not None


def is_empty(value: Any) -> bool:
    """Whether a value says nothing that could be a secret."""
    return value is None or isinstance(value, bool) or value in ("", [], {}, ())


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if is_secret_name(name) and _is_long(value):
            yield value


def _is_long(text: str) -> bool:
    """Whether a secret is told from the words of a message: no path, no short word, no short number."""
    return (
        len(text) >= SHORTEST and not text.startswith(("/", "~", ".")) and not re.fullmatch(r"[a-z]{,9}|\d{,5}", text)
    )


def _assigned(match: re.Match[str]) -> str:
    quote, name, between, opening, value = match.groups()
    if not is_secret_name(name) or value in ("true", "false", "null", "None") or name == "key":
        return match.group()
    return f"{quote}{name}{between}{opening}{HIDDEN}"


def _redact_in_text(url: str) -> str:
    """A URL as it stands in a sentence: the marks behind it are the sentence's."""
    whole = url.rstrip(_MARKS)
    return _redact_url(whole) + url[len(whole) :]


def _redact_url(url: str) -> str:
    """Each part of a chained URL (`zip://x.jsonl::s3://bucket/x.zip`) by itself."""
    return "::".join(_redact_one(part) for part in re.split(r"::(?=[A-Za-z][\w+.-]*(?:://|::))", url))


def _redact_one(url: str) -> str:
    """Scheme, host and path, and what of the query is known to be harmless."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme.lower() not in _WITHOUT_USERS or ":" in rest.partition("/")[0].partition("@")[0]:
        rest = _without_user(rest)
    rest, hash_, _ = rest.partition("#")
    path, mark, query = rest.partition("?")
    path, semicolon, _ = path.partition(";")
    shown = (_parameter(*pair.partition("=")) for pair in query.split("&"))
    parameters = f"?{'&'.join(shown)}" if mark else ""
    return f"{scheme}://{path}{semicolon and f';{HIDDEN}'}{parameters}{hash_ and f'#{HIDDEN}'}"


def _without_user(rest: str) -> str:
    """A URL behind its scheme, without user and password. A password may hold `/`, `?`, `#` and `@`."""
    authority, at = rest.partition("/")[0], rest.rfind("@")
    host = authority.partition("?")[0].partition("#")[0]
    has_password = ":" in host and (at >= 0 or not _HOST.fullmatch(host))
    if at >= 0 and has_password and _is_host(host):
        has_password = False  # the @ stands in the path
    if at >= 0 and (at < len(authority) or has_password):
        return f"{HIDDEN}@{rest[at + 1 :]}"
    return HIDDEN if has_password else rest  # its end was cut off


def _is_host(text: str) -> bool:
    """Whether it is a host with a port, and no user with a password of digits: it has a dot."""
    name = text.partition(":")[0]
    return _HOST.fullmatch(text) is not None and ("." in name or name == "localhost" or text.startswith("["))


def _parameter(key: str, equals: str, value: str) -> str:
    if not key and not value:
        return equals
    if _HIDDEN_BEFORE.fullmatch(value):
        return f"{key}{equals}{value}"
    if key.lower() in _HARMLESS and (not value or _WORD.fullmatch(value)):
        return f"{key}{equals}{_FORMS.sub(HIDDEN, value)}"
    return f"{key}={HIDDEN}" if value and _PARAMETER.fullmatch(key) else HIDDEN
