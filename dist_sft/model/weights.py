"""The weights that a run starts from: are they all there, and are they the same as before."""

import hashlib
from pathlib import Path

from dist_sft.config.sections import ModelSection
from dist_sft.core.files import EDGE
from dist_sft.model.architecture import Architecture
from dist_sft.model.headers import read_headers


def check_weights(model: ModelSection) -> None:
    """Raise ModelError for a model's folder whose weights are not all there; a model of the hub is not looked at."""
    if Path(model.path).is_dir():
        read_headers(model)


def model_fingerprint(path: str, config: Architecture) -> str:
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
