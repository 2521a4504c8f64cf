"""Weights & Biases: the run's figures, without anything that is nobody's business."""

import os
import uuid
from pathlib import Path
from typing import Any

from dist_sft.config.sections import RunSection, WandbSection
from dist_sft.core.errors import TrackingError
from dist_sft.core.files import atomic, writing


class Wandb:
    """One W&B run per run folder; a resumed run goes on with it.

    facts are already redacted: W&B stores a config as it is. Its own collection of argv, code and machine data is off.
    """

    def __init__(self, settings: WandbSection, run: RunSection, folder: Path, facts: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=list(settings.tags),
                name=run.name,
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
                fix="log in (wandb login, or WANDB_API_KEY on every node), or set tracking.wandb.mode=offline",
            ) from error
        for kind in ("step", "eval", "checkpoint"):
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def write(self, record: dict[str, Any]) -> None:
        if (kind := record["kind"]) == "note":
            self._run.summary.update({key: record[key] for key in ("ledger", "lost", "token_shares") if key in record})
            return
        figures = {f"{kind}/{key}": value for key, value in record.items() if key not in ("kind", "step")}
        self._run.log({"step": record["step"], **figures})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _run_id(folder: Path) -> str:
    """The id that this run folder has at W&B, made at the first start. An empty file is none. Raises StorageError."""
    path = folder / "run_id"
    if not (known := path.read_text().strip() if path.exists() else ""):
        known = uuid.uuid4().hex[:12]
        with writing(path), atomic(path) as file:
            file.write(known.encode())
    return known
