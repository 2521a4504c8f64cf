"""What the weight files of a model say of themselves: names, shapes and types of tensors. No weight is read.

model.path ─ folder, or the hub's cache, or the hub ─> Headers      Imports neither torch nor transformers.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.core.files import digest_of_ends

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
WEIGHTS = (SAFE, f"{SAFE}.index.json", PICKLED, f"{PICKLED}.index.json")
"""Names of weight files, and of the lists of them, in the order in which transformers looks for them."""
LONGEST = 100_000_000
"""Bytes of a header: safetensors refuses longer ones."""
AGAIN = "download or copy the model again"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. dtype: as safetensors writes it, e.g. BF16."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Headers:
    """The weights of a model as its files name them.

    tensors  by name; None where only unpickling can tell (`pickled`)
    pickled  files of torch.save
    digest   of all that was read here
    """

    tensors: dict[str, Stored] | None
    pickled: tuple[Path, ...]
    digest: str


def read_headers(settings: ModelSection, ask: bool = True) -> Headers | None:
    """None where the hub cannot be asked. Raises ModelError for files that are missing, cut or no weights.

    ask: the hub, for what has not been downloaded.
    """
    folder = Path(settings.path)
    if folder.is_dir():
        return _of_folder(folder, settings.path)
    found = {name: path for name in WEIGHTS if (path := cached(settings, name))}
    if not found:
        return _of_hub(settings) if ask else None
    snapshot = next(iter(found.values())).parent
    try:
        return _of_folder(snapshot, settings.path)
    except _Absent:
        return _of_hub(settings) if ask else None


def cached(settings: ModelSection, name: str) -> Path | None:
    """A file of a model of the hub, if it has been downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(settings.path, name, revision=settings.revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def model_folder(settings: ModelSection) -> Path | None:
    """Where the files of a model are, as far as they are here."""
    folder = Path(settings.path)
    if folder.is_dir():
        return folder
    found = cached(settings, "config.json")
    return found.parent if found is not None else None


def is_settled(settings: ModelSection) -> bool:
    """Whether what is here is what transformers would load: a folder, or a commit of a model of the hub. A branch may
    have moved."""
    return Path(settings.path).is_dir() or re.fullmatch("[0-9a-f]{40}", settings.revision or "") is not None


def config_file(settings: ModelSection) -> Path | None:
    """config.json of a folder, or of a model of the hub that has been downloaded."""
    folder = model_folder(settings)
    here = folder / "config.json" if folder else None
    return here if here is not None and here.is_file() else None


def config_content(settings: ModelSection) -> bytes | None:
    """What is in it, read once; None where it is not here, or cannot be read."""
    file = config_file(settings)
    try:
        return _content(file, file.stat().st_mtime_ns) if file else None
    except OSError:
        return None


@functools.lru_cache(8)
def _content(file: Path, changed: int) -> bytes:
    """changed: when it was, in nanoseconds since 1970."""
    return file.read_bytes()


class _Absent(ModelError):
    """Files that are not here: of a folder an error; of the hub they are yet to be downloaded."""


def _of_folder(folder: Path, where: str) -> Headers:
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise _Absent(
            "the folder holds no weights",
            where=where,
            fix=f"put {SAFE} or {PICKLED} beside its config.json",
        )
    files = [folder / name]
    if name.endswith(".index.json"):
        files = [folder / part for part in _parts(folder / name)]
        if missing := [part.name for part in files if not part.is_file()]:
            raise _Absent(
                f"{len(missing)} of {len(files)} files of weights are missing, the first {missing[0]}",
                where=where,
                fix=AGAIN,
            )
    if name.startswith(PICKLED):
        return Headers(None, tuple(files), hashlib.sha256(b"".join(map(digest_of_ends, files))).hexdigest())
    return _joined(header for file in files for header in [_read(file)])


def _parts(index: Path) -> list[str]:
    """Files that an index names. Raises ModelError."""
    try:
        parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if all(isinstance(part, str) and Path(part).name == part for part in parts):
            return parts
        raise ValueError("it names what is no file of this folder")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"the list of weights cannot be read: {type(error).__name__}: {error}", where=str(index), fix=AGAIN
        ) from error


def _read(file: Path) -> dict[str, Stored]:
    """The header of a safetensors file. Raises ModelError where it is none, or the file is shorter than it says."""
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if length > min(size - 8, LONGEST):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(content.read(length))
        header.pop("__metadata__", None)
        tensors = {name: Stored(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        end = 8 + length + max([0, *(entry["data_offsets"][1] for entry in header.values())])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise ModelError(f"no weights can be read: {error}", where=str(file), fix=AGAIN) from error
    if size < end:
        raise ModelError(f"the file has {size} bytes of {end}: it was cut", where=str(file), fix=AGAIN)
    return tensors


def _joined(headers: Iterable[dict[str, Stored]]) -> Headers:
    tensors: dict[str, Stored] = {}
    for header in headers:
        tensors |= header
    words = sorted((name, one.shape, one.dtype) for name, one in tensors.items())
    return Headers(tensors, (), hashlib.sha256(json.dumps(words).encode()).hexdigest())


def _of_hub(settings: ModelSection) -> Headers | None:
    """By requests for the first bytes of each file; None without a network, or for files of torch.save."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        found: Any = get_safetensors_metadata(settings.path, revision=settings.revision)
    except (OSError, ValueError, NotASafetensorsRepoError, SafetensorsParsingError):
        return None
    return _joined(
        {name: Stored(tuple(one.shape), one.dtype) for name, one in file.tensors.items()}
        for file in found.files_metadata.values()
    )


def unpickled(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """Names and tensors of files of torch.save, mapped, not read. Raises ModelError."""
    import torch

    for file in files:
        try:
            state = torch.load(file, map_location="meta", weights_only=True, mmap=True)
            yield from state.items()
        except Exception as error:  # whatever a broken pickle raises
            raise ModelError(f"no weights can be read: {error}", where=str(file), fix=AGAIN) from error
