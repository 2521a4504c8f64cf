"""The weights of a checkpoint, put together again one at a time; no GPU."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from dist_sft.checkpoint.layout import Manifest, verify_shard
from dist_sft.checkpoint.shards import Pieces
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import reading


class Weights(Mapping[str, Tensor]):
    """float32 weights by the model's own names, of everything that was trained. Each is read when it is asked for."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._saved = {name: name for name in pieces.manifest.parameters} | pieces.manifest.shared

    def __getitem__(self, name: str) -> Tensor:
        with reading(self._pieces.folder):
            return self._pieces.weight(self._saved[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._saved)

    def __len__(self) -> int:
        return len(self._saved)


def consolidated(folder: Path) -> Weights:
    """Raises CheckpointError for a checkpoint that is not as it was saved, StorageError for one that cannot be read."""
    with reading(folder):
        manifest = Manifest.read(folder)
        for name, shard in manifest.shards.items():
            if problem := verify_shard(folder, name, shard):
                raise CheckpointError(problem, where=str(folder), fix="export another step: --step N")
    return Weights(Pieces(folder, manifest))
