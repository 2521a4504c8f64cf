"""The folder of a run, and whether a run may go on in it.

RUN_DIR/
    run.json         facts: resolved config, package versions, git state, data fingerprints
    run.yaml         the resolved config, to run again
    metrics.jsonl    a line per step and evaluation
    ledger.jsonl     a line per row that was dropped or cut
    session          how often ranks were started
    checkpoints/     see checkpoint.layout; elsewhere with checkpoint.url
    tokenizer/       with the template that was trained; exports copy it
    wandb/
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dist_sft.checkpoint.layout import whole_steps
from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.redact import redacted
from dist_sft.config.resolve import resolved, resolved_yaml
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import CheckpointError, ConfigError, StorageError
from dist_sft.core.files import atomic, reading, stable_hash, write_json, writing
from dist_sft.core.storage import is_remote, storage_path
from dist_sft.run.opened import OpenedRun

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "peft", "ray", "datasets", "numpy", "dist-sft")


def facts(run: OpenedRun, fingerprints: dict[str, Any], stop_ids: list[int]) -> dict[str, Any]:
    """What one must know to do a run again.

    fingerprints: of sources, tokenizer and template, model, by what they identify. stop_ids: tokens that end an answer.
    """
    return {
        "stop_ids": stop_ids,
        "config": resolved(run.portable),
        "learned": {**learned(run.config), "fingerprints": fingerprints},
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        "git": git_state(Path(__file__).parent),
    }


def identity(now: dict[str, Any]) -> dict[str, str]:
    """Hashes by which its checkpoints know a run: of its config, as far as it is learned from, and of what it reads."""
    config = redacted(now["learned"])
    reads = config.pop("fingerprints")
    return {name: stable_hash(value) for name, value in {"config": config, **reads}.items()}


def checkpoints_of(config: RunConfig, folder: Path) -> Path:
    """Where the checkpoints of the run in a folder are. Raises ConfigError for a URL that cannot be used here."""
    url = config.checkpoint.url
    if url is None:
        return folder / "checkpoints"
    if url.startswith("memory:"):
        raise ConfigError(
            "memory:// is another place in each process", where="checkpoint.url", fix="name storage that all nodes see"
        )
    return storage_path(url)


def locate(config: RunConfig) -> Path:
    """Where run.dir is, as an absolute path; it need not be there yet.

    Raises ConfigError for a URL, StorageError for a folder that cannot be made or written.
    """
    if "://" in config.run.dir:
        raise ConfigError(
            f"run.dir is '{config.run.dir}', a URL: what is in it is written line by line",
            where="run.dir",
            fix="give a folder on storage that all nodes see, and the URL as checkpoint.url: the rest is small",
        )
    folder = Path(config.run.dir).absolute()
    refuse_unwritable(folder, "set run.dir to a folder that you may write")
    return folder


def refuse_unwritable(folder: Path, fix: str) -> None:
    """Raise StorageError where a folder is something else, or cannot be made. Changes nothing."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise StorageError("this is a file, and a folder is wanted here", where=str(there), fix=fix)
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError("no right to write here", where=str(there), fix=fix)


def prepare(folder: Path, now: dict[str, Any], config: RunConfig) -> None:
    """Write the facts of a run, after refusing to resume one that would learn something else.

    Raises ConfigError with the keys that differ, CheckpointError where the folder's facts cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = checkpoints_of(config, folder)
    _refuse_another_place(folder, checkpoints)
    refuse_changes(folder, now, checkpoints)
    write_json(folder / "run.json", redacted(now))
    with atomic(folder / "run.yaml") as file:
        file.write(resolved_yaml(config).encode())


def next_session(folder: Path) -> int:
    """Number of this start of the ranks, above that of every start before."""
    path = folder / "session"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        session = int(path.read_text()) + 1 if path.exists() else 1
    except ValueError:  # damaged: seconds since 1970 are more than there were starts
        session = int(time.time())
    with writing(path), atomic(path) as file:
        file.write(str(session).encode())
    return session


def refuse_changes(folder: Path, now: dict[str, Any], checkpoints: Path) -> None:
    """Raise ConfigError where there are checkpoints of a run that learns something else than `now` says.

    Behind a URL they may outlive the folder: then it is their manifests that are compared, when they are loaded.
    """
    path = folder / "run.json"
    if not whole_steps(checkpoints) or (is_remote(checkpoints) and not path.exists()):
        return
    with reading(path):
        try:
            before = redacted(_learned(json.loads(path.read_bytes())))  # an earlier version may have hidden less
        except (FileNotFoundError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"the folder has checkpoints, but not what they were trained with: {error}",
                where=str(path),
                fix="bring run.json back, or start in a new run.dir",
            ) from error
    if changes := changed_keys(before, json.loads(json.dumps(redacted(now["learned"])))):
        raise ConfigError(
            "this run has checkpoints, and would learn something else from here on: " + "; ".join(changes),
            where=str(path.parent),
            fix="undo the change, or start a new run in another run.dir",
        )


def _refuse_another_place(folder: Path, checkpoints: Path) -> None:
    """Raise ConfigError where a run that has checkpoints elsewhere would begin again, and forget its records."""
    if not (folder / "run.json").exists() or whole_steps(checkpoints):
        return
    url = read_facts(folder).get("config", {}).get("checkpoint", {}).get("url")
    earlier = storage_path(url) if url else folder / "checkpoints"
    if str(earlier) != str(checkpoints) and whole_steps(earlier):
        raise ConfigError(
            f"this run has checkpoints at {earlier}, and none at {checkpoints}: it would begin again",
            where="checkpoint.url",
            fix="copy them there first, or start a new run in another run.dir",
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
    try:
        return RunConfig.model_validate(read_facts(folder)["config"])
    except (KeyError, ConfigError) as error:
        raise CheckpointError(
            f"run.json holds no config of this version of dist-sft: {error}",
            where=str(folder / "run.json"),
            fix="use the version that its key `versions` names",
        ) from error


def _learned(facts: Any) -> dict[str, Any]:
    """What a run.json says of what is learned. Raises ValueError."""
    found = facts.get("learned") if isinstance(facts, dict) else None
    if not isinstance(found, dict):
        raise ValueError("it holds no facts of a run")
    return found


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
