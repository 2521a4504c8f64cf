"""What of a run file goes to the cluster, and whether it can mean there what it means here.

RunConfig -> text of the run file in the ConfigMap
"""

import posixpath
from collections.abc import Iterator
from typing import Any

from dist_sft.config.document import dotted
from dist_sft.config.kubernetes import KubernetesSection
from dist_sft.config.redact import secret_keys
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError
from dist_sft.kubernetes.pods import SCRATCH
from dist_sft.kubernetes.text import as_documents
from dist_sft.run.opened import OpenedRun

TRAINER = "trainer"
"""Resource of Ray's that a worker pod has one of for each of its workers: by CPUs alone Ray would pack more into it."""

MOST = 1 << 20
"""Bytes of a ConfigMap, as Kubernetes limits them."""


def run_file(run: OpenedRun, settings: KubernetesSection) -> str:
    """The settings that were made (in the file, by overrides, by a preset), with the DeepSpeed JSON among them.

    What is about this machine and about Kubernetes stays behind: the pods know their cluster by RAY_ADDRESS.

    Raises:
        ConfigError: a path that the pods cannot see, a secret in a URL, or more than a ConfigMap holds.
    """
    config = run.config
    values = run.portable.model_dump(mode="json", exclude_unset=True)
    values.pop("kubernetes", None)
    values["cluster"] = {**values.get("cluster", {}), "resource": trainer_of(config)}
    values["cluster"].pop("address", None)
    for key, path in _paths(config):
        _refuse_outside(key, path, settings)
    _refuse_secrets(values)
    _refuse_mute_wandb(config, settings)
    text = as_documents([values])
    if len(text.encode()) > MOST:
        raise ConfigError(
            f"the run file has {len(text.encode())} bytes, and a ConfigMap holds {MOST}",
            where="the run file",
            fix="name a folder or a glob in data.sources in place of single files",
        )
    return text


def trainer_of(config: RunConfig) -> str:
    """The resource that worker pods have for their workers."""
    return config.cluster.resource or TRAINER


def _paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Settings that name files, by key. What is relative begins at the claim's mount."""
    yield "run.dir", config.run.dir
    yield "model.path", config.model.path
    for i, source in enumerate(config.data.sources):
        yield f"data.sources[{i}].path", source.path
    for place, held_out in config.eval.given.items():
        yield dotted(("eval", *place)), held_out.path
    if config.data.template.endswith(".jinja"):
        yield "data.template", config.data.template
    if config.data.cache and "cache" in config.data.model_fields_set:
        yield "data.cache", config.data.cache


def _refuse_outside(key: str, path: str, settings: KubernetesSection) -> None:
    if "://" in path or path.startswith("hub:"):
        return
    mount = settings.storage.mount
    there = posixpath.normpath(posixpath.join(mount, path))
    allowed = (mount, SCRATCH) if key == "data.cache" else (mount,)
    if path.startswith("~") or not any(there == root or there.startswith(f"{root}/") for root in allowed):
        raise ConfigError(
            f"{key} is '{path}', which the pods do not see: they share the claim "
            f"'{settings.storage.claim}', mounted at {mount}",
            where=key,
            fix=f"put it on the claim, and write a path below {mount}, or one relative to it; or mount the claim "
            "elsewhere: kubernetes.storage.mount",
        )


def _refuse_secrets(values: Any) -> None:
    for key in secret_keys(values):
        raise ConfigError(
            f"{key} holds a secret, and everyone who may read the ConfigMap could read it",
            where=key,
            fix="leave it out, and give the library's own variable by kubernetes.secrets, e.g. "
            "{AWS_SECRET_ACCESS_KEY: {name: SECRET, key: KEY}}",
        )


def _refuse_mute_wandb(config: RunConfig, settings: KubernetesSection) -> None:
    wandb = config.tracking.wandb
    if wandb and wandb.mode == "online" and "WANDB_API_KEY" not in settings.secrets:
        raise ConfigError(
            "tracking.wandb.mode is online, and the pods would have no WANDB_API_KEY",
            where="kubernetes.secrets",
            fix="set kubernetes.secrets.WANDB_API_KEY={name: wandb, key: api-key}, or tracking.wandb.mode=offline",
        )
