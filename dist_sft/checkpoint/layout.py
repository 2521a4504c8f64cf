"""Where checkpoints live, and what makes one whole.

RUN_DIR/checkpoints/, or checkpoint.url
    .dist-sft                      the folder is ours, see core.ownership
    writer                         which start of the run may write here
    step_00000100/
        manifest.json              written last: with it the checkpoint is whole, without it nothing
        7-3f9a/                    what one start of the run wrote, so that none can touch another's files
            rank00000.safetensors  what one rank updates: weights and states of the optimizer
            rank00000.json         size, SHA-256 and content of it, for rank 0
    step_00000150.bad/             failed verification; quarantined, with reason.txt, until a newer one is

A manifest is put in place by one rename, behind a URL by one request, and names every other file with its size and
SHA-256. It has a SHA-256 of its own: of its content without it, as `stable_hash` takes it.

A checkpoint is removed file by file, those with these names: what somebody else has put there stays.
"""

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_sft.core.errors import CheckpointError, StorageError
from dist_sft.core.files import PARTIAL, reading, sha256, stable_hash, write_json
from dist_sft.core.ownership import claim, remove_ours
from dist_sft.core.storage import failures, is_remote, listed, move_tree, remove_file

MANIFEST, WRITER = "manifest.json", "writer"
QUARANTINED = ".bad"
_NAME = re.compile(r"step_[0-9]{8,}")
_START = re.compile(r"[0-9]+-[\w.-]+")
_OURS = re.compile(
    rf"(manifest\.json|reason\.txt|{_START.pattern}/(rank[0-9]{{5,}}\.(safetensors|json)|adapter_starts\.safetensors))"
    rf"({PARTIAL})?"
)
FORMAT = 3
_DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What says that a file is not there, or none; all else says nothing about it."""


class UnknownFormat(CheckpointError):
    """Written by another version: sound perhaps, so it is left where it is."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a checkpoint: bytes long, written by a rank.

    pieces  by parameter, (first number, how many) of its flattened weight that are in this file
    dtypes  by column (see `checkpoint.shards`), of its tensors in this file
    """

    bytes: int
    sha256: str
    rank: int
    pieces: dict[str, tuple[int, int]]
    dtypes: dict[str, list[str]]


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself.

    step        updates done
    world       ranks that wrote it; zero_stage: of DeepSpeed. Any other number and stage can go on from it.
    adapter     only trained parameters are in it (LoRA)
    run         hashes of its config, as far as it decides what is learned, and of what it reads (e.g. sources)
    state       what the run keeps besides, e.g. early stopping
    parameters  shape of each, by name; shared: other names of some of them, e.g. of a tied head
    held_out    loss on the held-out rows that decide (eval.decides) at this step, if it was computed
    shards      by path inside the checkpoint
    versions    of the packages that wrote it
    """

    step: int
    world: int
    zero_stage: int
    adapter: bool
    run: dict[str, str]
    state: dict[str, Any]
    parameters: dict[str, tuple[int, ...]]
    shared: dict[str, str]
    held_out: float | None
    shards: dict[str, Shard]
    versions: dict[str, str]
    format: int = FORMAT

    def unlike(self, run: dict[str, str]) -> str:
        """What tells it from a checkpoint of another run, by name; '' where it is of this run."""
        return ", ".join(name for name in {**self.run, **run} if self.run.get(name) != run.get(name))

    def write(self, folder: Path) -> None:
        content = asdict(self)
        write_json(folder / MANIFEST, {"sha256": stable_hash(content), **content}, indent=None)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises CheckpointError for one that is missing or damaged; what its storage raises where that fails."""
        path = folder / MANIFEST
        try:
            fields = json.loads(path.read_bytes())
            digest, sound = fields.pop("sha256", None), stable_hash(fields)
            if fields["format"] != FORMAT and digest in (sound, None):  # older formats have none
                raise UnknownFormat(
                    f"format {fields['format']} is not known to this version",
                    where=str(path),
                    fix="use the version of dist-sft that wrote it: run.json of the run folder names it",
                )
            if digest != sound:
                raise ValueError("it does not have the content that was saved")
            shards = {name: Shard(**shard) for name, shard in fields.pop("shards").items()}
            if outside := [name for name in shards if name.startswith("/") or ".." in Path(name).parts]:
                raise ValueError(f"it names a file outside of the checkpoint, {outside[0]}")
            return cls(shards=shards, **fields)
        except (*_DAMAGE, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            fix = "export another step: --step N; a run goes on from the checkpoint before it"
            raise CheckpointError(f"the manifest cannot be read: {error}", where=str(path), fix=fix) from error


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, whole or not, by its name; None of what is none of ours."""
    return int(path.name.removeprefix("step_")) if _NAME.fullmatch(path.name) else None


def is_quarantined(path: Path) -> bool:
    return path.suffix == QUARANTINED and step_of(path.with_suffix("")) is not None


def whole_steps(checkpoints: Path) -> list[int]:
    """Steps that have a manifest, oldest first. Raises StorageError."""
    with reading(checkpoints):
        found = {path: step_of(path) for path in listed(checkpoints, "step_")}
        return sorted(step for path, step in found.items() if step is not None and is_whole(path))


def is_whole(checkpoint: Path) -> bool:
    """Whether it has a manifest. Raises what its storage raises: a failure says nothing about the checkpoint."""
    return (checkpoint / MANIFEST).exists()


def verify_shard(folder: Path, name: str, shard: Shard) -> str | None:
    """What is wrong with a shard, or None. Raises what its storage raises, as `is_whole` does."""
    path = folder / name
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    if size != shard.bytes:
        return f"{name} has {size} bytes instead of {shard.bytes}"
    return None if sha256(path) == shard.sha256 else f"{name} does not have the content that was saved"


def remove(checkpoint: Path) -> str | None:
    """Remove what is ours of a checkpoint, whole or not; what went wrong, or None."""
    try:
        with contextlib.suppress(IsADirectoryError):
            remove_file(checkpoint / MANIFEST)  # from here on it is not there
        remove_ours(checkpoint, is_ours)
    except failures(checkpoint) as error:
        return f"{checkpoint.name} cannot be removed, the next save tries again: {error}"
    return None


def is_ours(name: str) -> bool:
    """Whether a file of a checkpoint is one that we wrote, by its path in it."""
    return _OURS.fullmatch(name) is not None


def quarantine(folder: Path, reason: str) -> Path:
    """Rename a checkpoint that cannot be trusted, so that nobody finds it again."""
    quarantined = folder.with_name(f"{folder.name}{QUARANTINED}")
    remove_ours(quarantined, is_ours)
    if quarantined.exists():
        raise StorageError("somebody else's files are in it", where=str(quarantined), fix="move it away")
    move_tree(folder, quarantined)
    (quarantined / "reason.txt").write_text(reason + "\n")
    return quarantined


def claim_checkpoints(checkpoints: Path) -> None:
    """Make the folder of checkpoints ours. Raises StorageError where it holds something else under our names."""
    fix = "set run.dir (or checkpoint.url) to another folder, or move it away"
    claim(checkpoints, "checkpoints", is_wanted, has_checkpoints, fix)
    for path in listed(checkpoints, "step_"):
        if (step_of(path) is not None or is_quarantined(path)) and _is_foreign(path):
            raise StorageError("this is no checkpoint, and has the name of one", where=str(path), fix="move it away")


def is_wanted(name: str) -> bool:
    """Whether we write something of this name beside checkpoints."""
    return name == WRITER or _NAME.fullmatch(name.removesuffix(QUARANTINED)) is not None


def has_checkpoints(checkpoints: Path) -> bool:
    """Whether a run of any version has written checkpoints here."""
    with contextlib.suppress(OSError, ValueError):
        if _START.fullmatch((checkpoints / WRITER).read_text()):
            return True
    steps = [path for path in listed(checkpoints, "step_") if step_of(path) is not None]
    return any(_has_start(path) or (is_whole(path) and not _is_foreign(path)) for path in steps)


def _has_start(checkpoint: Path) -> bool:
    """Whether a start of a run has written something of a checkpoint."""
    if not is_remote(checkpoint) and not checkpoint.is_dir():
        return False
    folders = [path for path in listed(checkpoint, "") if is_remote(path) or path.is_dir()]
    starts = [path for path in folders if _START.fullmatch(path.name)]
    return any(is_ours(f"{start.name}/{path.name}") for start in starts for path in listed(start, ""))


def _is_foreign(checkpoint: Path) -> bool:
    """Whether a checkpoint can be none of ours: no folder, or with a manifest that is not, and nothing else that is."""
    if not is_remote(checkpoint) and not checkpoint.is_dir():
        return True
    try:
        Manifest.read(checkpoint)
    except UnknownFormat:
        return False
    except CheckpointError:
        return (checkpoint / MANIFEST).exists() and not _has_start(checkpoint)
    return False


def newest(run_dir: Path, step: int | None = None) -> Path:
    """The newest whole checkpoint of a run folder, or that of a step. Raises CheckpointError."""
    return newest_in(run_dir / "checkpoints", step)


def newest_in(checkpoints: Path, step: int | None = None) -> Path:
    """The newest whole checkpoint of a run, or that of a step. Raises CheckpointError."""
    steps = whole_steps(checkpoints)
    if not steps or (step is not None and step not in steps):
        have = f"there are steps {', '.join(map(str, steps))}" if steps else "there is none"
        raise CheckpointError(
            f"no checkpoint of step {step}; {have}" if step is not None else "this run has no checkpoint",
            where=str(checkpoints),
            fix="name a step that is there" if steps else "train first: dist-sft train RUN.yaml",
        )
    return folder_of(checkpoints, step if step is not None else steps[-1])
