"""What is found out about an architecture with torch, kept in the cache: the next command needs no torch for it."""

import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_sft.core.files import write_json

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "transformers", "tokenizers")
WORK = {
    "config": "reading config.json with transformers; what it says is kept in the cache",
    "vocabulary": "reading the tokenizer with transformers; what it says is kept in the cache",
    "stops": "reading the generation config with transformers; what it says is kept in the cache",
    "layout": "laying out the model without weights; what is found is kept in the cache",
    "trial": "trying a small copy of the model; what is found is kept in the cache",
    "weights": "comparing the weight files with the model; what is found is kept in the cache",
}
"""What takes seconds, for the user, by kind."""


def remember(cache: Path | None, kind: str, of: bytes, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns: JSON values, made once for this kind, this content, our code and these versions.

    cache: folder, None: nothing is kept. of: all that the result depends on, beside versions and code. A cache that
    cannot be read or written costs time only.
    """
    key = hashlib.sha256(b"\0".join((kind.encode(), _versions().encode(), of))).hexdigest()
    file = None if cache is None else cache / "models" / f"{kind}-{key[:32]}.json"
    if file is not None:
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(file.read_bytes())
            if isinstance(found, dict):
                return found
    log.info(WORK.get(kind, kind))
    made = make()
    if file is not None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, made)
    return made


@functools.cache
def _versions() -> str:
    """Of the libraries, and a digest of this package's code for models: it says what can be trained."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(__file__).parents[1] / "data"):
        for source in sorted(folder.rglob("*.py")):
            digest.update(source.read_bytes())
    return " ".join([*(f"{name}=={importlib.metadata.version(name)}" for name in LIBRARIES), digest.hexdigest()])
