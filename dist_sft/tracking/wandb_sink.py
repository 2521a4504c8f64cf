"""Weights & Biases: the run's figures, without anything that is nobody's business."""

import os
import uuid
from pathlib import Path
from typing import Any

from dist_sft.config.sections import RunSection, WandbSection
from dist_sft.core.errors import TrackingError
from dist_sft.core.files import atomic, writing
from dist_sft.core.redact import scrubbed
from dist_sft.tracking.records import Checkpoint, End, Evaluation, Record, Step, figures

LOGIN = "log in (wandb login, or WANDB_API_KEY on every node), or set tracking.wandb.mode=offline"


def refuse_without_login(settings: WandbSection | None) -> None:
    """Raise TrackingError where W&B would be asked from this machine, and knows no key here. Nobody is contacted."""
    if settings is None or settings.mode != "online":
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise TrackingError("W&B has no API key on this machine", where="tracking.wandb", fix=LOGIN)


class Wandb:
    """One W&B run per run folder; a resumed run goes on with it.

    A figure is called by the kind of its record, as in step/loss; a group's by what was done with its samples, as in
    train/loss/tag/math and eval/tokens/tag/math. facts are already redacted: W&B stores a config as it is. Its own
    collection of argv, code and machine data is off.
    """

    def __init__(self, settings: WandbSection, run: RunSection, folder: Path, facts: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        try:
            self._run = wandb.init(
                project=settings.project and scrubbed(settings.project),
                entity=settings.entity,
                group=settings.group and scrubbed(settings.group),
                tags=[scrubbed(tag) for tag in settings.tags],
                name=scrubbed(run.name),
                id=_run_id(folder),
                resume="allow",
                mode=settings.mode,
                dir=folder,
                config=facts,
                settings=wandb.Settings(x_disable_meta=True, save_code=False, console="off"),
            )
        except (wandb.Error, ValueError) as error:
            raise TrackingError(
                f"W&B cannot be used: {error}",
                where="tracking.wandb",
                fix=LOGIN,
            ) from error
        for kind in ("step", "train", "eval", "checkpoint"):
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def write(self, record: Record) -> None:
        match record:
            case End():
                self._run.summary.update({key: getattr(record, key) for key in ("ledger", "lost", "token_shares")})
            case Step() | Evaluation() | Checkpoint():
                found = figures(record)
                step, _ = found.pop("step"), found.pop("groups", ())
                plain = {f"{record.kind}/{name}": value for name, value in found.items()}
                self._run.log({"step": step, **plain, **_by_group(record)})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _by_group(record: Step | Evaluation | Checkpoint) -> dict[str, float]:
    """As in train/loss/tag/math."""
    if isinstance(record, Checkpoint):
        return {}
    kind = "train" if isinstance(record, Step) else "eval"
    return {
        f"{kind}/{figure}/{group.by}/{group.name}": value
        for group in record.groups
        for figure, value in (("loss", group.loss), ("tokens", group.tokens))
    }


def _run_id(folder: Path) -> str:
    """The id that this run folder has at W&B, made at the first start. An empty file is none. Raises StorageError."""
    path = folder / "run_id"
    if not (known := path.read_text().strip() if path.exists() else ""):
        known = uuid.uuid4().hex[:12]
        with writing(path), atomic(path) as file:
            file.write(known.encode())
    return known
