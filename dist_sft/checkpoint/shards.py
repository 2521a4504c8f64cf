"""Files of a checkpoint: safetensors, written and hashed in one pass, read by what one needs of them.

pieces of parameters ─ write_shard ─> rank00000.safetensors ─ Pieces.read ─> any stretch of any parameter

A tensor of a shard is called COLUMN/PARAMETER: a column is the weight or a state of the optimizer, and the manifest
says which stretch of the parameter it is. No file of a checkpoint is a pickle: reading one can run no code.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_sft.checkpoint.layout import Manifest, Shard
from dist_sft.checkpoint.partition import STEP, WEIGHT, Piece
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import durable, room
from dist_sft.core.storage import is_remote, read_range

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64"}
"""Of dtypes in a safetensors header (https://huggingface.co/docs/safetensors, format)."""
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def write_shard(path: Path, tensors: dict[str, Tensor], pieces: dict[str, tuple[int, int]], rank: int) -> Shard:
    """Write a safetensors file, on disk when this returns. tensors: on the CPU, contiguous.

    Raises what its storage raises, e.g. OSError.
    """
    digest, size = hashlib.sha256(), 0
    with durable(path) as file:
        for part in (memoryview(_header(tensors)), *(_bytes(tensor) for tensor in tensors.values())):
            digest.update(part)
            file.write(part)
            size += len(part)
    dtypes: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        dtypes.setdefault(_column(name), set()).add(NAMES[tensor.dtype])
    return Shard(size, digest.hexdigest(), rank, pieces, {column: sorted(found) for column, found in dtypes.items()})


def _column(name: str) -> str:
    return name.partition("/")[0]


def _header(tensors: dict[str, Tensor]) -> bytes:
    at, header = 0, {}
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def describe(error: Exception, folder: Path) -> str:
    """An error of a write, and how much room there is."""
    there = folder if is_remote(folder) else next(path for path in (folder, *folder.parents) if path.exists())
    return f"{(str(error).splitlines() or [type(error).__name__])[0]} ({room(there)})"


class ShardFile:
    """A shard, of which any stretch of any tensor can be read, on a disk or behind a URL.

    No file stays open: one that is removed while open goes on lying in its folder, on NFS, and the folder with it.
    Raises OSError where it cannot be read, ValueError where it is not what `write_shard` writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        size = int.from_bytes(read_range(path, 0, 8), "little")
        self._tensors: dict[str, Any] = json.loads(read_range(path, 8, 8 + size))
        self._begin = 8 + size
        self.names = set(self._tensors)

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """[last - first] numbers of a flattened tensor."""
        dtype, (begin, end) = DTYPES[self._tensors[name]["dtype"]], self._tensors[name]["data_offsets"]
        start = self._begin + begin + first * dtype.itemsize
        stop = self._begin + end if last is None else self._begin + begin + last * dtype.itemsize
        if start == stop:
            return torch.empty(0, dtype=dtype)
        content = bytearray(read_range(self._path, start, stop))
        if len(content) != stop - start:
            raise ValueError(f"it ends inside of {name}")
        return torch.frombuffer(content, dtype=dtype)

    def tensor(self, name: str) -> Tensor:
        """A whole one, in its own shape."""
        return self.read(name).view(self._tensors[name]["shape"])


class Pieces:
    """All shards of a checkpoint, as one store of parameters."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._where: dict[str, list[tuple[int, int, str]]] = {}  # by parameter: start, end, file
        for name, shard in manifest.shards.items():
            for parameter, (start, count) in shard.pieces.items():
                self._where.setdefault(parameter, []).append((start, start + count, name))
        self._open = functools.lru_cache(maxsize=256)(functools.partial(_opened, folder))

    def read(self, column: str, piece: Piece, into: Tensor) -> bool:
        """Fill into[piece.at:][:piece.count], float32; False where no shard has this column.

        Raises CheckpointError where a part of the stretch is nowhere.
        """
        end, found, missing = piece.start + piece.count, 0, False
        for first, last, name in self._where.get(piece.parameter, ()):
            begin, stop = max(first, piece.start), min(last, end)
            if begin >= stop:
                continue
            file = self._open(name)
            if (key := f"{column}/{piece.parameter}") not in file.names:
                missing = True
                continue
            at = piece.at + begin - piece.start
            into[at : at + stop - begin] = file.read(key, begin - first, stop - first)
            found += stop - begin
        if missing and not found:
            return False
        if found != piece.count:
            raise CheckpointError(
                f"of {column} of {piece.parameter}, numbers {piece.start} to {end}, {found} are in it",
                where=str(self.folder),
                fix="it is not of this model; use the run file that it was trained with",
            )
        return True

    @functools.cached_property
    def columns(self) -> set[str]:
        """The weight and those states of the optimizer that can be cut anew."""
        return {column for column in self._columns() if not column.isdecimal()} - {STEP}

    @property
    def rounds(self) -> bool:
        """Whether there are states that cannot be."""
        return any(column.isdecimal() for column in self._columns())

    def _columns(self) -> set[str]:
        return {column for shard in self.manifest.shards.values() if shard.pieces for column in shard.dtypes}

    def of_rank(self, rank: int) -> tuple[str, Shard]:
        """The file that a rank wrote its pieces to."""
        return next(
            (name, shard) for name, shard in self.manifest.shards.items() if shard.rank == rank and shard.pieces
        )

    def rounded(self, rank: int, number: int) -> dict[str, Tensor]:
        """States that a rank kept in a form of its own for one of its partitions, by name."""
        file = self._open(self.of_rank(rank)[0])
        return {key.partition("/")[2]: file.tensor(key) for key in file.names if key.startswith(f"{number}/")}

    def steps(self, parameter: str) -> set[int]:
        """How many updates the optimizer has counted for a parameter, by all shards that have a piece of it."""
        opened = [self._open(name) for _, _, name in self._where.get(parameter, ())]
        key = f"{STEP}/{parameter}"
        return {int(file.read(key)) for file in opened if key in file.names}

    def weight(self, parameter: str) -> Tensor:
        """float32, in its own shape."""
        shape = self.manifest.parameters[parameter]
        values = torch.empty(torch.Size(shape).numel())
        self.read(WEIGHT, Piece(parameter, 0, len(values), 0), values)
        return values.view(shape)


def _opened(folder: Path, name: str) -> ShardFile:
    try:
        return ShardFile(folder / name)
    except ValueError as error:
        raise CheckpointError(f"the shard cannot be read: {error}", where=str(folder / name)) from error
