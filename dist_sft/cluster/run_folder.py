"""The folder of a run, and whether a run may go on in it.

RUN_DIR/
    run.json         facts: resolved config, package versions, git state, data fingerprints
    run.yaml         the resolved config, to run again
    metrics.jsonl    a line per step and evaluation
    ledger.jsonl     a line per row that was dropped or cut
    checkpoints/     see checkpoint.layout
    tokenizer/       with the template that was trained; exports copy it
    wandb/
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.resolve import redacted, resolved, resolved_yaml
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import CheckpointError, ConfigError
from dist_sft.core.files import atomic, write_json

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "peft", "ray", "datasets", "numpy", "dist-sft")


def facts(config: RunConfig, fingerprints: dict[str, str], stop_ids: list[int]) -> dict[str, Any]:
    """What one must know to do a run again.

    fingerprints: of data, tokenizer and template, by name. stop_ids: tokens that end an answer.
    """
    return {
        "stop_ids": stop_ids,
        "config": resolved(config),
        "learned": {**learned(config), "fingerprints": fingerprints},
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        "git": git_state(Path(__file__).parent),
    }


def prepare(folder: Path, now: dict[str, Any], config: RunConfig) -> None:
    """Write the facts of a run, after refusing to resume one that would learn something else.

    Raises ConfigError with the keys that differ, CheckpointError where the folder's facts cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    if path.exists() and any((folder / "checkpoints").glob("step_*")):
        _refuse_changes(path, now)
    write_json(path, redacted(now))
    with atomic(folder / "run.yaml") as file:
        file.write(resolved_yaml(config).encode())


def _refuse_changes(path: Path, now: dict[str, Any]) -> None:
    try:
        before = json.loads(path.read_bytes())["learned"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the facts of the run cannot be read: {error}", where=str(path), fix="start in a new run.dir"
        ) from error
    if changes := changed_keys(before, json.loads(json.dumps(redacted(now["learned"])))):
        raise ConfigError(
            "this run has checkpoints, and would learn something else from here on: " + "; ".join(changes),
            where=str(path.parent),
            fix="undo the change, or start a new run in another run.dir",
        )


def read_facts(folder: Path) -> dict[str, Any]:
    """What `facts` wrote. Raises CheckpointError."""
    try:
        found: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
        return found
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "this is not the folder of a run: run.json is not there or not readable",
            where=str(folder),
            fix="give the run.dir of a run file that was trained",
        ) from error


def read_config(folder: Path) -> RunConfig:
    """The config that a run folder was trained with. Raises CheckpointError."""
    return RunConfig.model_validate(read_facts(folder)["config"])


def git_state(folder: Path) -> dict[str, Any]:
    """Commit, and whether files differ from it; empty outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "changed_files": len(status.splitlines())}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
