"""Run `dist-sft train` as a job of a Ray cluster: once at a time for each run, and again where it stopped.

run file, overrides ─ all that can be checked here ─> Submission ─> Jobs ─> LogFollower ─> exit code

A run's jobs are NAME-1, NAME-2, ...: the cluster takes each id once, so two people cannot start the same one.
"""

import hashlib
import importlib.metadata
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ray.runtime_env import RuntimeEnv

from dist_sft.cluster.secrets import secret_names
from dist_sft.config.document import BOM, Document, parse_yaml, read_settings, read_whole
from dist_sft.config.kept import RunFile
from dist_sft.config.overrides import apply_overrides
from dist_sft.config.redact import secret_keys
from dist_sft.config.resolve import resolved
from dist_sft.core.errors import ClusterError, ConfigError
from dist_sft.core.redact import redact_urls
from dist_sft.remote.follow import command
from dist_sft.remote.jobs import Job, Jobs
from dist_sft.remote.package import Package, package
from dist_sft.run.opened import OpenedRun
from dist_sft.run.trainable import is_here, refuse_untrainable

NAME_LENGTH = 60
"""Most characters of a run's name in the ids of its jobs, which are names of files, too."""


@dataclass(frozen=True)
class Submission:
    """What a cluster is sent, all of which it shows to whoever may list jobs."""

    run: str
    command: str
    package: Package
    runtime_env: dict[str, Any]
    metadata: dict[str, str]


def prepare(
    run_file: Path,
    run: OpenedRun,
    overrides: Sequence[str],
    *,
    include: Sequence[str] = (),
    secrets: Sequence[str] = (),
    runtime_env: Path | None = None,
) -> Submission:
    """Everything that can be said before a cluster is asked. Raises SftError.

    include: files and folders to upload beside what the run file names.  secrets: names of environment variables that
    every node must have.  runtime_env: a YAML file with what Ray shall set up, e.g. pip, uv, env_vars.
    """
    config, secrets = run.config, secret_names(secrets)
    environment = _read_runtime_env(runtime_env) if runtime_env else {}
    for where, values in ((str(run_file), resolved(run.portable)), (str(runtime_env), environment)):
        _refuse_secrets(where, values)
    for number, override in enumerate(overrides, 1):  # what a later one replaces stands in the command, too
        _refuse_secrets(f"override {number}", apply_overrides(Document({}, {}), [override]).value)
    _refuse_secret_text(run_file)
    _ = run.resolved_deepspeed  # its contradictions are said here, not by the job
    files = package(run_file, config, include)
    if is_here(run):
        refuse_untrainable(run)
    if config.cluster.address:
        overrides = [*overrides, "cluster.address=null"]  # the job's own cluster, by the name it has inside
    words = ["dist-sft", "train", _as_path(files.run_file), *overrides, *(f"--secret={name}" for name in secrets)]
    return Submission(
        run=config.run.name,
        command=shlex.join(words),
        package=files,
        runtime_env=environment,
        metadata={
            "run": config.run.name,
            "run_dir": redact_urls(config.run.dir),
            "dist_sft": importlib.metadata.version("dist-sft"),
        },
    )


def submit(jobs: Jobs, submission: Submission) -> str:
    """Start the job. Returns its id; raises ClusterError where the run is running already."""
    job_id = next_id(submission.run, jobs.all(), jobs.address)
    with tempfile.TemporaryDirectory(prefix="dist_sft_submit_") as folder:
        archive = Path(folder) / "package.zip"
        submission.package.write(archive)
        jobs.submit(job_id, submission.command, archive, submission.runtime_env, submission.metadata)
    return job_id


def next_id(run: str, jobs: Iterable[Job], address: str) -> str:
    """Id of a run's next job. Raises ClusterError while one of its jobs has not ended."""
    slug = _slug(run)
    earlier = {int(found[1]): job for job in jobs if (found := re.fullmatch(rf"{re.escape(slug)}-(\d+)", job.id))}
    for job in earlier.values():
        if not job.ended:
            follow, stop = (command(verb, job.id, address) for verb in ("logs --follow", "stop"))
            raise ClusterError(
                f"run '{run}' is {job.status.lower()} on this cluster as job {job.id}",
                where=address,
                fix=f"follow it ({follow}), stop it ({stop}), or give this run another run.name and run.dir",
            )
    return f"{slug}-{max(earlier, default=0) + 1}"


def _slug(name: str) -> str:
    """A run's name where only A-Z, a-z, 0-9, . _ - may stand; names that differ stay different."""
    slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-")[:NAME_LENGTH]
    return slug if slug == name else f"{slug or 'run'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _read_runtime_env(path: Path) -> dict[str, Any]:
    try:
        value = parse_yaml(read_settings(path, "the runtime environment"), str(path)).value
    except FileNotFoundError:
        raise ConfigError(
            "the runtime environment cannot be read: no such file", where=str(path), fix="check the path"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError("not sections of key: value", where=str(path), fix="e.g. env_vars: {HF_HOME: /mnt/hub}")
    if "working_dir" in value:
        raise ConfigError(
            "working_dir is made of what the run file names",
            where=str(path),
            fix="leave it out; --include PATH adds files and folders",
        )
    try:
        RuntimeEnv(**value)
    except (TypeError, ValueError) as error:
        fix = "see Ray's documentation of runtime environments"
        raise ConfigError(f"not what Ray takes: {_without(value, str(error))}", where=str(path), fix=fix) from None
    return value


def _without(value: Any, said: str) -> str:
    """The first line of what Ray says of some values, without the values."""
    for text in sorted({str(one) for one in _single(value)}, key=len, reverse=True):
        said = said.replace(repr(text), "...").replace(text, "...") if len(text) > 1 else said
    return said.splitlines()[0]


def _single(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _single(inner)
    else:
        yield value


def _as_path(name: str) -> str:
    """A run file as a command takes it: "--help.yaml" would be an option of its."""
    return f"./{name}" if name.startswith("-") else name


def _refuse_secret_text(run_file: Path) -> None:
    """The file is sent as it is: also what overrides replace in it, and its comments."""
    text = read_whole(run_file, "the run file")
    value = parse_yaml(text.removeprefix(BOM), str(run_file)).value
    _refuse_secrets(str(run_file), value)
    shown = RunFile(run_file, text, value).without_secrets()
    for number, (line, other) in enumerate(zip(text.splitlines(), shown.splitlines(), strict=False), 1):
        if line != other:
            _refuse(f"{run_file}:{number}", "this line")


def _refuse_secrets(where: str, values: dict[str, Any]) -> None:
    if keys := secret_keys(values):
        _refuse(where, ", ".join(keys))


def _refuse(where: str, what: str) -> NoReturn:
    raise ConfigError(
        f"{what} looks like a secret, and whoever may list the cluster's jobs could read it",
        where=where,
        fix="set it as a variable where the cluster's nodes are started, and name it: --secret NAME",
    )
