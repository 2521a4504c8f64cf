"""The folder of a run, and whether a run may go on in it.

RUN_DIR/
    .dist-sft        the folder is ours, see core.ownership; which copies of a run file we have written
    run.json         facts: resolved config, package versions, git state, data fingerprints
    run.yaml         the run file as it was written, without secrets; not there where the settings are from no file
    resolved.yaml    every setting of the run; in folders of earlier versions run.yaml is that
    metrics.jsonl    a line per step and evaluation
    ledger.jsonl     a line per row that was dropped or cut
    session          how often ranks were started
    checkpoints/     see checkpoint.layout; elsewhere with checkpoint.url
    tokenizer/       with the template that was trained; exports copy it
    wandb/
    stacks/          of ranks that hung

Files of somebody else may lie in it under other names, as in `run.dir: .`. They are never touched.
"""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dist_sft.checkpoint.layout import has_checkpoints, whole_steps
from dist_sft.config.document import parse_yaml
from dist_sft.config.kept import masked
from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.redact import redacted
from dist_sft.config.resolve import resolved, yaml_of
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import CheckpointError, ConfigError, SftError, StorageError
from dist_sft.core.files import atomic, reading, sha256, stable_hash, write_json, writing
from dist_sft.core.ownership import claim, mark, marked_facts, refuse_foreign
from dist_sft.core.storage import is_remote, storage_path
from dist_sft.run.opened import OpenedRun
from dist_sft.tracking.records import Start, read

RUN_FILE, RESOLVED = "run.yaml", "resolved.yaml"
LOCK = ".lock"
NAMES = frozenset({RESOLVED, "run.json", "metrics.jsonl", "ledger.jsonl", "session", LOCK, "tokenizer", "stacks"})
"""What every run writes into its folder; see `wanted` for the rest."""
ELSEWHERE = "set run.dir to another folder, or move what is there"
END = "...\n"
"""Last line of a resolved.yaml that is whole: YAML's end of a document."""
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


def kept_text(run: OpenedRun) -> str | None:
    """What the run folder keeps of the run file; None where that is itself the file there, or there is none."""
    if run.file is None or any(_is_same(run.folder / name, run.file.path) for name in (RUN_FILE, RESOLVED)):
        return None
    return run.file.without_secrets()


def wanted(config: RunConfig, kept: str | None) -> frozenset[str]:
    """The names that a run writes to in its folder. kept: of the run file, see `kept_text`."""
    places = {"checkpoints": config.checkpoint.url is None, "wandb": _uses_wandb(config), RUN_FILE: kept is not None}
    return NAMES | {name for name, used in places.items() if used}


def _overwritten(folder: Path, config: RunConfig, kept: str | None) -> frozenset[str]:
    """`wanted`, but for a lock without content, which a lost machine leaves: nothing is lost with it."""
    lock = folder / LOCK
    left = lock.is_file() and not lock.is_symlink() and lock.stat().st_size == 0
    return wanted(config, kept) - ({LOCK} if left else set())


def refuse_collisions(folder: Path, config: RunConfig, kept: str | None) -> None:
    """Raise StorageError where a run would overwrite what is not its own. Changes nothing."""
    refuse_foreign(folder, _overwritten(folder, config, kept).__contains__, is_earlier, ELSEWHERE)
    path = folder / RUN_FILE
    if kept is not None and os.path.lexists(path) and not _is_kept(folder, kept):
        raise StorageError("it is not the copy of a run file that was kept here", where=str(path), fix=ELSEWHERE)


def begin(folder: Path, config: RunConfig, kept: str | None) -> None:
    """Make the folder that of a run. Raises what `refuse_collisions` raises, and what storage raises."""
    refuse_collisions(folder, config, kept)
    before = {}
    if is_earlier(folder) and not marked_facts(folder):
        before = {RUN_FILE: [sha256(folder / RUN_FILE)]} if _is_resolved(folder) else {}
        for name, made in (("checkpoints", has_checkpoints), ("tokenizer", Path.is_dir), ("wandb", _has_run_id)):
            if made(folder / name):
                mark(folder / name, {"kind": name})
    claim(folder, "run", _overwritten(folder, config, kept).__contains__, is_earlier, ELSEWHERE)
    if before:
        mark(folder, {"kind": "run", **before})


def is_earlier(folder: Path) -> bool:
    """Whether a version that left no mark has run in a folder."""
    try:
        _learned(json.loads((folder / "run.json").read_bytes()))
        return True
    except (OSError, ValueError, RecursionError):
        pass
    try:
        return bool(read(folder / "metrics.jsonl", Start))
    except (OSError, SftError):
        return False


def prepare(folder: Path, now: dict[str, Any], config: RunConfig, kept: str | None = None) -> None:
    """Write the facts of a run, after refusing to resume one that would learn something else.

    kept: of the run file, see `kept_text`.
    Raises ConfigError with the keys that differ, CheckpointError where the folder's facts cannot be read, StorageError
    where something else is there.
    """
    begin(folder, config, kept)
    checkpoints = checkpoints_of(config, folder)
    _refuse_another_place(folder, checkpoints)
    refuse_changes(folder, now, checkpoints)
    if kept is not None:
        _keep(folder, kept.encode())
    write_json(folder / "run.json", redacted(now))
    with atomic(folder / RESOLVED) as file:
        file.write(f"{yaml_of(masked(resolved(config)))}{END}".encode())


def _keep(folder: Path, content: bytes) -> None:
    """Put the copy of a run file in place; the mark knows it before it is there."""
    path = folder / RUN_FILE
    if path.is_file() and path.read_bytes() == content:
        return
    digests = [sha256(path)] if path.is_file() else []
    digests.append(hashlib.sha256(content).hexdigest())
    mark(folder, {**marked_facts(folder), RUN_FILE: digests})
    with atomic(path) as file:
        file.write(content)


def _is_kept(folder: Path, kept: str) -> bool:
    """Whether run.yaml is a copy that we wrote, or what we would write."""
    path = folder / RUN_FILE
    if path.is_symlink() or not path.is_file():
        return False
    known = marked_facts(folder).get(RUN_FILE)
    return (
        path.read_bytes() == kept.encode()
        or sha256(path) in (known if isinstance(known, list) else ())
        or (not known and _is_resolved(folder))
    )


def _is_resolved(folder: Path) -> bool:
    """Whether run.yaml is what an earlier version wrote: all settings that run.json has, and nothing else."""
    try:
        text = (folder / RUN_FILE).read_text()
        settings = {**parse_yaml(text, RUN_FILE).value, "deepspeed": None}
        facts = {**json.loads((folder / "run.json").read_bytes())["config"], "deepspeed": None}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, SftError):
        return False
    return redacted(settings) == redacted(facts) and not any(line.lstrip().startswith("#") for line in text.split("\n"))


def own(folder: Path, name: str) -> Path:
    """A folder in that of a run, made and marked. Raises StorageError where somebody else's is there."""
    claim(folder / name, name, lambda _: True, lambda _: False, ELSEWHERE)
    return folder / name


def _has_run_id(wandb: Path) -> bool:
    return (wandb / "run_id").is_file()


def _uses_wandb(config: RunConfig) -> bool:
    return config.tracking.wandb is not None and config.tracking.wandb.mode != "disabled"


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


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
    try:
        settings = _settings(folder)
    except CheckpointError:  # nobody knows where they were
        return
    section = settings.get("checkpoint")
    url = section.get("url") if isinstance(section, dict) else None
    earlier = storage_path(url) if isinstance(url, str) else folder / "checkpoints"
    if str(earlier) != str(checkpoints) and whole_steps(earlier):
        raise ConfigError(
            f"this run has checkpoints at {earlier}, and none at {checkpoints}: it would begin again",
            where="checkpoint.url",
            fix="copy them there first, or start a new run in another run.dir",
        )


def read_facts(folder: Path) -> dict[str, Any]:
    """What `facts` wrote. Raises CheckpointError."""
    path = folder / "run.json"
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it holds no facts of a run")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            "this is not the folder of a run: run.json is not there or not readable",
            where=str(folder),
            fix="give the run.dir of a run file that was trained",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"it cannot be read: {error}", where=str(path), fix="bring it back from a copy"
        ) from error
    return found


def read_stop_ids(folder: Path) -> list[int]:
    """The tokens that end an answer of a run. Raises CheckpointError."""
    ids = read_facts(folder).get("stop_ids")
    if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids):
        where = str(folder / "run.json")
        raise CheckpointError(
            "it does not say which tokens end an answer", where=where, fix="bring it back from a copy"
        )
    return ids


def read_config(folder: Path) -> RunConfig:
    """The config that a run folder was trained with. Raises CheckpointError."""
    try:
        return RunConfig.model_validate(_settings(folder))
    except ConfigError as error:
        raise CheckpointError(
            f"run.json holds no config of this version of dist-sft: {error}",
            where=str(folder / "run.json"),
            fix="use the version that its key `versions` names",
        ) from error


def _settings(folder: Path) -> dict[str, Any]:
    """The settings that a run folder was trained with: of resolved.yaml; where that is not whole, or an earlier version
    left none, of run.json, which holds them, too. Raises CheckpointError.
    """
    try:
        text = (folder / RESOLVED).read_text()
        found = parse_yaml(text, RESOLVED).value
        if text.endswith(END) and isinstance(found, dict):
            return found
    except (OSError, ValueError, SftError):
        pass
    try:
        settings = read_facts(folder).get("config")
    except CheckpointError:
        if (settings := _earlier_settings(folder)) is None:
            raise
    return settings if isinstance(settings, dict) else {}


def _earlier_settings(folder: Path) -> dict[str, Any] | None:
    """Of the run.yaml of an earlier version, which holds every section."""
    try:
        found = parse_yaml((folder / RUN_FILE).read_text(), RUN_FILE).value
    except (OSError, ValueError, SftError):
        return None
    whole = isinstance(found, dict) and {"run", "model", "data", "train", "checkpoint", "tracking"} <= found.keys()
    return found if whole and not os.path.lexists(folder / RESOLVED) else None


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
