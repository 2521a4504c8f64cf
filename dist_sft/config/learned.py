"""The part of a run file that decides what is learned: a run may be resumed only if it is unchanged.

The rest is execution (see EXECUTION in sections): how fast, where, how visibly.
"""

from typing import Any

from dist_sft.config.problems import show
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import Section

PACKING = ("tokens_per_pack", "packing", "micro_steps", "pad_to_multiple_of")
"""Settings of `train` that decide which samples share a pack."""

ALWAYS = ("share", "decides")
"""Settings of `eval` that a run keeps whether or not an evaluation can stop it."""


def learned(config: RunConfig) -> dict[str, Any]:
    """JSON values of all settings that change what is learned, by section.

    `eval` is among them when it can stop the run (patience), else only what is held out of training and whose loss the
    best checkpoints have; what decides how samples are packed, only with noise that depends on the pack
    (model.neftune.scale).
    """
    values = remembered(config)
    if config.model.neftune and config.model.neftune.scale == "row":
        values["train"].update({name: getattr(config.train, name) for name in PACKING})
        values["cluster"] = {"workers": config.cluster.workers}
    if config.eval.patience is None:
        evaluation = values.pop("eval", {})
        if kept := {name: evaluation[name] for name in ALWAYS if name in evaluation}:
            values["eval"] = kept
    return values


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences of two `learned` values, a line for each: "train.learning_rate was 1e-05, is 2e-05"."""
    before, after = _leaves(old, ""), _leaves(new, "")
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key} was {_show(before, key)}, is {_show(after, key)}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def remembered(section: Section) -> dict[str, Any]:
    """What a section says of learning: nothing of execution, nor what is newer than runs of before and not set."""
    values: dict[str, Any] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("execution"):
            continue
        value = getattr(section, name)
        if isinstance(extra, dict) and extra.get("added") and value == field.get_default():
            continue
        if isinstance(value, Section):
            inner: Any = remembered(value)
            if not inner and type(value).model_fields:
                continue
        elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
            inner = [remembered(item) for item in value]
        else:
            inner = dumped[name]
        values[name] = inner
    return values


def _leaves(value: Any, key: str) -> dict[str, Any]:
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(i), inner) for i, inner in enumerate(value)]
    if not items:
        return {key: value} if key else {}
    leaves: dict[str, Any] = {}
    for name, inner in items:
        leaves.update(_leaves(inner, f"{key}.{name}" if key else name))
    return leaves


def _show(leaves: dict[str, Any], key: str) -> str:
    return show(leaves[key]) if key in leaves else "not set"
