"""Save and load on all ranks together.

save: each rank copies what it updates, and training goes on; behind it the copy is written (fsync, SHA-256), and rank 0
      writes the manifest when all have written theirs (`checkpoint.writing`)
load: newest first; ranks share the work of verifying; what fails is quarantined, and the one before it is used; each
      rank reads the pieces that it updates, whoever wrote them

Every method is a collective: all ranks call it, and all return or all raise.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_sft.checkpoint.agreement import on_rank_0
from dist_sft.checkpoint.layout import (
    WRITER,
    Manifest,
    UnknownFormat,
    claim_checkpoints,
    folder_of,
    is_whole,
    quarantine,
    remove,
    step_of,
    verify_shard,
    whole_steps,
)
from dist_sft.checkpoint.partition import STEP, WEIGHT, Partition, partitions, spread_weights
from dist_sft.checkpoint.shards import Pieces
from dist_sft.checkpoint.writing import Retention, Writing
from dist_sft.core.errors import CheckpointError, SftError, StorageError
from dist_sft.core.files import atomic, reading
from dist_sft.core.storage import is_remote, listed, retried

SETTLE = 30.0
"""Seconds that a run which has failed still gives to a checkpoint on its way."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    step         updates done
    state        what the run keeps besides
    quarantined  checkpoints that could not be trusted, with the reason
    """

    step: int
    state: dict[str, Any]
    quarantined: tuple[str, ...]


@dataclass
class CheckpointStore:
    """The checkpoints of one run.

    folder     RUN_DIR/checkpoints, on storage that all ranks see; or what is behind checkpoint.url
    retention  which survive a save
    adapter    save only the parameters that are trained
    attempt    names this start of the run: ranks left over from another can touch nothing of it
    run        hashes by which its checkpoints know it
    starts     what the adapter started from, see `checkpoint.starts`
    behind     write while training goes on; False: training waits, and no second copy of the states is held
    versions   of packages, for the manifest
    tell       on rank 0, takes (step, seconds that training stalled, seconds until it was whole) of a checkpoint
    say        on rank 0, takes (step, text) about old checkpoints that cannot be removed
    """

    folder: Path
    retention: Retention
    adapter: bool
    attempt: str
    run: dict[str, str]
    starts: dict[str, Tensor] = field(default_factory=dict)
    behind: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    tell: Callable[[int, float, float], None] | None = None
    say: Callable[[int, str], None] | None = None
    _writing: Writing | None = None
    _copies: dict[str, Tensor] = field(default_factory=dict)

    def save(self, engine: Any, step: int, state: dict[str, Any], held_out: float | None = None) -> None:
        """Begin a checkpoint of `step` updates; raises what `finish` raises, about the one before.

        Training may go on when this returns. held_out: loss on held-out rows after this step.
        """
        began = time.monotonic()
        self.finish()
        on_rank_0(self.folder, lambda: retried(self.folder, lambda: self._clear(step)))
        tensors, pieces = self._copied(partitions(engine))
        manifest = Manifest(
            step, dist.get_world_size(), engine.zero_optimization_stage(), self.adapter, self.run, state,
            _shapes(engine), _shared(engine), held_out, {}, self.versions,
        )  # fmt: skip
        self._writing = Writing(
            self.folder, self.attempt, manifest, tensors, pieces, self.starts, self.retention, began
        )
        if self.behind:
            self._writing.stall = time.monotonic() - began
        else:
            self.finish()

    def finish(self) -> None:
        """Wait until what was begun is whole. Raises on all ranks if it cannot be: StorageOutage where that may pass,
        else CheckpointError.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        outcomes: list[SftError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, writing.written())
        for error in filter(None, outcomes):
            writing.abandon()
            raise error
        if error := on_rank_0(self.folder, writing.committed):
            raise error
        if self.tell:
            stall = writing.seconds if writing.stall is None else writing.stall
            self.tell(writing.step, stall, writing.seconds)
        if self.say:
            for problem in writing.stayed:
                self.say(writing.step, problem)

    def settle(self) -> None:
        """Not a collective: let what is on its way become whole, if the other ranks can do so as well."""
        if self._writing is not None:
            self._writing.settle(SETTLE)

    def load(self, engine: Any) -> Progress:
        """Bring the engine to the newest whole checkpoint; to step 0 if there are none at all.

        Raises CheckpointError where none can be trusted, or where it was made by another way of tuning.
        """
        on_rank_0(self.folder, self._take_over)
        bad: dict[Path, str] = {}
        for step in reversed(on_rank_0(self.folder, lambda: whole_steps(self.folder))):
            folder = folder_of(self.folder, step)
            manifest, problem = _verify(folder, self.run)
            if manifest is None:
                bad[folder] = problem
                continue
            on_rank_0(self.folder, lambda: [quarantine(folder, problem) for folder, problem in bad.items()])
            self._load_into(engine, folder, manifest)
            return Progress(step, manifest.state, tuple(f"{path.name}: {why}" for path, why in bad.items()))
        if bad:
            raise CheckpointError(
                f"none of the {len(bad)} checkpoints can be trusted; the newest: {next(iter(bad.values()))}",
                where=str(self.folder),
                fix="bring one back from a copy, or remove them to begin again from the base model",
            )
        return Progress(0, {}, ())

    def _take_over(self) -> None:
        """From here on, no other start of the run can finish a checkpoint."""
        if is_remote(self.folder):
            self._refuse_others()
        claim_checkpoints(self.folder)
        with atomic(self.folder / WRITER) as file:
            file.write(self.attempt.encode())

    def _refuse_others(self) -> None:
        """A URL is easily left in a run file that is copied, and the run that it belongs to may be running."""
        others = []
        for step in reversed(whole_steps(self.folder)):
            with contextlib.suppress(CheckpointError):
                others.append(Manifest.read(folder_of(self.folder, step)).unlike(self.run))
        if others and all(others):
            raise CheckpointError(
                f"the checkpoints there are of another run; not the same: {others[0]}",
                where=str(self.folder),
                fix="give each run a checkpoint.url of its own",
            )

    def _clear(self, step: int) -> None:
        """Remove what earlier starts left half-written, and what an earlier save could not remove."""
        for left in listed(self.folder, "step_"):
            if step_of(left) is not None and not is_whole(left) and (problem := remove(left)) and self.say:
                self.say(step, problem)
        if is_whole(final := folder_of(self.folder, step)):
            quarantine(final, "saved again by a run that had started from an earlier step")

    def _copied(self, parts: list[Partition]) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
        """Copies of what this rank saves, by name in its shard, and where in its parameter each lies."""
        tensors: dict[str, Tensor] = {}
        pieces: dict[str, tuple[int, int]] = {}
        for number, part in enumerate(parts):
            for piece in part.to_save():
                pieces[piece.parameter] = (piece.start, piece.count)
                if part.step is not None:
                    tensors[f"{STEP}/{piece.parameter}"] = torch.tensor([part.step])
                for column, values in part.columns().items():
                    tensors[f"{column}/{piece.parameter}"] = values[piece.at : piece.at + piece.count]
            tensors |= {f"{number}/{name}": state for name, state in part.rounded().items()}
        if self.behind or any(tensor.is_cuda for tensor in tensors.values()):
            tensors = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return tensors, pieces

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """In the same memory each time."""
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape:
            copy = self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return copy.copy_(tensor, non_blocking=True)

    def _load_into(self, engine: Any, folder: Path, manifest: Manifest) -> None:
        if manifest.adapter != self.adapter:
            kinds = ("all weights", "an adapter")
            raise CheckpointError(
                f"it holds {kinds[manifest.adapter]}, and this run trains {kinds[self.adapter]}",
                where=str(folder),
                fix="start the new run in another run.dir",
            )
        shapes = {name: tuple(shape) for name, shape in manifest.parameters.items()}
        for name, shape in _shapes(engine).items():
            if shapes.get(name) != shape:
                raise CheckpointError(
                    f"{name} is {list(shape)} in the model, and {list(shapes.get(name, ()))} in it",
                    where=str(folder),
                    fix="go on with the model and the tuning that it was trained with",
                )
        stored, problem = Pieces(folder, manifest), None
        try:
            with reading(folder, f"rank {dist.get_rank()}: "):
                for number, part in enumerate(partitions(engine)):
                    _fill(part, number, stored, engine.optimizer)
        except SftError as error:
            problem = error
        except ValueError as error:
            problem = CheckpointError(f"it cannot be read: {error}", where=str(folder))
        outcomes: list[SftError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, problem)
        for failure in filter(None, outcomes):
            raise failure
        spread_weights(engine)


def _fill(part: Partition, number: int, stored: Pieces, optimizer: Any) -> None:
    """Bring a partition to what is stored of its pieces. Raises CheckpointError."""
    pieces = [piece for piece in part.pieces if piece.count]
    for piece in pieces:
        stored.read(WEIGHT, piece, part.columns()[WEIGHT])
    for column in stored.columns - {WEIGHT}:
        state = torch.zeros_like(part.values)
        if all(stored.read(column, piece, state.view(-1)) for piece in pieces):
            part.state[column] = state
    if stored.rounds:
        part.state.update(_rounded(part, number, stored))
    steps = set().union(*(stored.steps(piece.parameter) for piece in pieces))
    if len(steps) > 1:
        raise CheckpointError(f"its optimizer has counted {sorted(steps)} updates", where=str(stored.folder))
    for step in steps:
        part.state[STEP] = _counted(step, optimizer, part.values)


def _rounded(part: Partition, number: int, stored: Pieces) -> dict[str, Tensor]:
    """States that only the ranks and pieces that made them can go on with. Raises CheckpointError for others."""
    rank, wrote = dist.get_rank(), stored.manifest
    cut = {p.parameter: [p.start, p.count] for p in part.to_save()}
    if wrote.world != dist.get_world_size() or not cut.items() <= stored.of_rank(rank)[1].pieces.items():
        raise CheckpointError(
            f"its optimizer's states are in 8 bits, of {wrote.world} workers with ZeRO-{wrote.zero_stage}: they cannot "
            "be cut anew",
            where=str(stored.folder),
            fix=f"resume with cluster.workers={wrote.world} and the same DeepSpeed stage",
        )
    return {name: state.to(part.values.device) for name, state in stored.rounded(rank, number).items()}


def _counted(step: int, optimizer: Any, values: Tensor) -> Tensor | int:
    """A number of updates as this optimizer counts them."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.AdamW):
        return step
    return torch.tensor(float(step), device=values.device if inner.defaults["fused"] else "cpu")


def _shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """Of the parameters that are trained; under ZeRO-3 a parameter's own shape is `ds_shape`."""
    named = ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in named}


def _shared(engine: Any) -> dict[str, str]:
    """Names of parameters that have one already, and that one."""
    first: dict[Tensor, str] = {}
    named = engine.module.named_parameters(remove_duplicate=False)
    names = [(name, first.setdefault(p, name)) for name, p in named if p.requires_grad]
    return {name: known for name, known in names if name != known}


def _verify(folder: Path, run: dict[str, str]) -> tuple[Manifest | None, str]:
    """The manifest of a whole checkpoint, or None and what is wrong; the same on every rank, each reads its part.

    Raises StorageError where the storage fails: that says nothing about the checkpoint.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    manifest, found, failed = None, [], None
    try:
        with reading(folder, f"rank {rank}: "):
            manifest = Manifest.read(folder)
            mine = list(manifest.shards.items())[rank::world]
            found = [problem for name, shard in mine if (problem := verify_shard(folder, name, shard))]
        if other := manifest.unlike(run):
            found.append(f"it is of another run; not the same: {other}")
        if folder_of(folder.parent, manifest.step) != folder:
            found.append(f"its manifest is that of step {manifest.step}")
    except (UnknownFormat, StorageError) as error:
        failed = error
    except CheckpointError as error:
        found = [error.what]
    outcomes: list[Any] = [None] * world
    dist.all_gather_object(outcomes, (found, failed))
    for _, failure in outcomes:
        if failure:
            raise failure
    problem = next((problem for problems, _ in outcomes for problem in problems), "")
    return (None, problem) if problem else (manifest, "")
