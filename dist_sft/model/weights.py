"""The weights that a run starts from: are they all there, and are they the same as before."""

import hashlib
import json
from pathlib import Path

from transformers import PretrainedConfig

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files that transformers looks for in a model's folder; NAME.index.json where there are several."""
EDGE = 2**20
"""Bytes at either end of a weight file that are looked at: whole files would take minutes at every start."""


def check_weights(model: ModelSection) -> None:
    """Raise ModelError for a model's folder whose weights are not all there; a model of the hub is not looked at."""
    folder = Path(model.path)
    if not folder.is_dir():
        return
    indices = [folder / f"{name}.index.json" for name in WEIGHTS]
    index = next((path for path in indices if path.is_file()), None)
    if any((folder / name).is_file() for name in WEIGHTS):
        return
    if index is None:
        raise ModelError(
            "the folder holds no weights", where=model.path, fix=f"put {' or '.join(WEIGHTS)} beside its config.json"
        )
    try:
        parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"the list of weights cannot be read: {type(error).__name__}: {error}",
            where=str(index),
            fix="download or copy the model again",
        ) from error
    if missing := [name for name in parts if not (folder / name).is_file()]:
        raise ModelError(
            f"{len(missing)} of {len(parts)} files of weights are missing, the first {missing[0]}",
            where=model.path,
            fix="download or copy the model again",
        )


def model_fingerprint(path: str, config: PretrainedConfig) -> str:
    """The commit of a hub id; of a folder, a digest of names, sizes and both ends of its weight files."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*")):
        if file.suffix not in (".safetensors", ".bin"):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name},{size};".encode())
        with file.open("rb") as content:
            digest.update(content.read(EDGE))
            content.seek(max(size - EDGE, 0))
            digest.update(content.read(EDGE))
    return digest.hexdigest()
