"""Where checkpoints live, and what makes one whole.

RUN_DIR/checkpoints/
    step_00000100/            whole: it got this name last
        manifest.json         step, world, every shard with size and SHA-256
        shards/               DeepSpeed's files, each written by one rank
    step_00000200.ATTEMPT.partial/    being written, or left by a crash; never read
    step_00000150.bad/        failed verification; put aside, with reason.txt
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import sha256, write_json

SHARDS = "shards"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a checkpoint: bytes long, written by a rank."""

    bytes: int
    sha256: str
    rank: int


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself.

    step        updates done
    world       ranks that wrote it
    zero_stage  of DeepSpeed
    adapter     only trained parameters are in it (LoRA)
    state       what the run keeps besides, e.g. early stopping
    shards      by path inside the checkpoint
    """

    step: int
    world: int
    zero_stage: int
    adapter: bool
    state: dict[str, Any]
    shards: dict[str, Shard]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        write_json(folder / "manifest.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises CheckpointError for a manifest that is missing or torn; OSError where the storage fails."""
        path = folder / "manifest.json"
        try:
            fields = json.loads(path.read_bytes())
            shards = {name: Shard(**shard) for name, shard in fields.pop("shards").items()}
            manifest = cls(shards=shards, **fields)
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the manifest cannot be read: {error}", where=str(path)) from error
        if manifest.format != FORMAT:
            raise CheckpointError(f"format {manifest.format} is not known to this version", where=str(path))
        return manifest


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def whole_steps(checkpoints: Path) -> list[int]:
    """Steps that have a checkpoint under its final name, oldest first."""
    names = (path.name.removeprefix("step_") for path in checkpoints.glob("step_*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdigit())


def verify_shard(folder: Path, name: str, shard: Shard) -> str | None:
    """What is wrong with a shard, or None."""
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != shard.bytes:
        return f"{name} has {size} bytes instead of {shard.bytes}"
    return None if sha256(path) == shard.sha256 else f"{name} does not have the content that was saved"


def put_aside(folder: Path, reason: str) -> Path:
    """Rename a checkpoint that cannot be trusted, so that nobody finds it again."""
    aside = folder.with_name(f"{folder.name}.bad")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    (aside / "reason.txt").write_text(reason + "\n")
    return aside


def newest(run_dir: Path, step: int | None = None) -> Path:
    """The newest whole checkpoint of a run, or that of a step. Raises CheckpointError."""
    checkpoints = run_dir / "checkpoints"
    steps = whole_steps(checkpoints)
    if not steps or (step is not None and step not in steps):
        have = f"there are steps {', '.join(map(str, steps))}" if steps else "there is none"
        raise CheckpointError(
            f"no checkpoint of step {step}; {have}" if step is not None else "no checkpoint in this run folder",
            where=str(checkpoints),
            fix="name a step that is there" if steps else "train first: dist-sft train RUN.yaml",
        )
    return folder_of(checkpoints, step if step is not None else steps[-1])
