"""What identifies the weights that a run starts from."""

import hashlib
from pathlib import Path

from transformers import PretrainedConfig

EDGE = 2**20
"""Bytes at either end of a weight file that are looked at: whole files would take minutes at every start."""


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
