"""What transformers says of a model's config.json and tokenizer, asked of a process of its own, without torch.

transformers imports torch wherever it is installed: four seconds, for a command that shows a row. In a process that has
torch already, it is asked there.

    python -m dist_sft.model.apart PATH [REVISION]      # JSON on standard output
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.headers import config_content, config_file, is_settled, model_folder
from dist_sft.model.remembered import remember

CONFIG, VOCABULARY, STOPS = "config", "vocabulary", "stops"
WEIGHT_FILES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot"})
"""Ends of names of files that hold weights."""
LONGEST = 64 << 20
"""Bytes of a file that is known by its content; a longer one, which is no part of a tokenizer, by its size and time."""
QUIET = {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}


def ask(settings: ModelSection, part: str, here: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """CONFIG: see `model.configuration.spelled_out`; VOCABULARY: the fields of a `Vocabulary`; STOPS: {"ids": those on
    which the base model stops}. Raises ModelError.

    here: asks transformers in this process.
    """
    if "torch" in sys.modules:
        return here()
    answer = _asked(settings.path, settings.revision, _stamp(model_folder(settings)))[part]
    if "error" in answer:
        raise ModelError(**answer["error"])
    found: dict[str, Any] = answer["found"]
    return found


def ask_once(
    settings: ModelSection, cache: Path | None, part: str, here: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """`ask`, kept by the content of all files beside the weights: which of them matter, transformers knows."""
    folder = model_folder(settings) if cache and is_settled(settings) else None
    try:
        content = _content(settings, folder) if folder else None
    except OSError:
        content = None  # transformers says what cannot be read, if it matters
    if content is None:
        return ask(settings, part, here)
    return remember(cache, part, content, lambda: ask(settings, part, here))


def _files(folder: Path) -> list[Path]:
    """All files of a model beside its weights."""
    files = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*.jinja")]
    return [file for file in sorted(files) if file.is_file() and file.suffix not in WEIGHT_FILES]


def _content(settings: ModelSection, folder: Path) -> bytes:
    config = config_file(settings)  # it is read once in all
    digests = []
    for file in _files(folder):
        state = file.stat()
        if state.st_size > LONGEST:
            digests.append((file.name, f"{state.st_size} {state.st_mtime_ns}"))
            continue
        content = (config_content(settings) or b"") if file == config else file.read_bytes()
        digests.append((file.name, hashlib.sha256(content).hexdigest()))
    return json.dumps(digests).encode()


def _stamp(folder: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Changes with each change of a model's files."""
    try:
        states = [(file.name, file.stat()) for file in _files(folder)] if folder else []
    except OSError:
        return ()
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


@functools.lru_cache(8)
def _asked(path: str, revision: str | None, stamp: object) -> dict[str, dict[str, Any]]:
    """By part: {"found": ...}, or {"error": ...}. Raises ModelError where the process says nothing.

    stamp: of the model's files, which are asked about again when they have changed.
    """
    del stamp
    command = [sys.executable, "-m", __name__, path, *([revision] if revision else [])]
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | QUIET, check=False)
    try:
        answer: dict[str, dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ModelError(
            f"transformers ended with exit code {ended.returncode} as it read config.json and the tokenizer",
            where=path,
            fix="see what it wrote above",
        ) from None
    return answer


def _main(path: str, revision: str | None = None) -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]  # as though it were not installed
    from dist_sft.model.configuration import load_configuration, spelled_out
    from dist_sft.model.generation import stops_of_base
    from dist_sft.model.tokenizer import load_tokenizer, vocabulary_of

    settings = ModelSection(path=path, revision=revision)
    read = functools.cache(lambda: load_configuration(settings))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        CONFIG: lambda: spelled_out(read()),
        VOCABULARY: lambda: asdict(vocabulary_of(load_tokenizer(path, revision, read()))),
        STOPS: lambda: {"ids": stops_of_base(settings)},
    }
    answer: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            answer[name] = {"found": part()}
        except ModelError as error:
            answer[name] = {"error": {"what": error.what, "where": error.where, "fix": error.fix}}
    print(json.dumps(answer))  # noqa: T201


if __name__ == "__main__":
    _main(*sys.argv[1:])
