"""The DeepSpeed JSON merged with what the run decides; where the two disagree, an error.

The loop marks the end of a step itself (`engine.set_gradient_accumulation_boundary`) and scales the loss itself
(`engine.backward(loss, scale_wrt_gas=False)`), so DeepSpeed is told of one micro-batch of one pack.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dist_sft.config.deepspeed_file import read_deepspeed
from dist_sft.config.deepspeed_keys import KNOWN
from dist_sft.config.deepspeed_rules import refusals
from dist_sft.config.document import Document, dotted
from dist_sft.config.document import Path as Key
from dist_sft.config.problems import Problem, as_error, show
from dist_sft.config.run_config import RunConfig
from dist_sft.config.settings import nearest

Device = Literal["cpu", "cuda"]


def deepspeed_config(config: RunConfig, document: Document, world: int, device: Device) -> dict[str, Any]:
    """What `deepspeed.initialize(config=...)` and `HfDeepSpeedConfig` get. It holds no "auto".

    Args:
        document: the DeepSpeed JSON, see `deepspeed_document`.
        world: data-parallel ranks.
        device: what the ranks compute on.
    Raises:
        ConfigError: with all that is wrong: a key that DeepSpeed does not know, a value that contradicts the run
            file, or a setting that is known not to work; each at file:line.
    """
    given = _without_auto(document.value)
    decided = {key: (value, why) for key, value, why in _decided(config, world, _stage(given))}
    problems = [*_unknown(document.value), *_contradictions(given, decided)]
    problems += refusals(given, config.model.dtype, device, config.train.optimizer.name)
    if problems:
        raise as_error(problems, document, of="the DeepSpeed JSON")
    result = copy.deepcopy(given)
    for key, value in _defaults(_stage(given)):
        if _get(result, key) is None:
            _put(result, key, value)
    for key, (value, _) in decided.items():
        _put(result, key, value)
    return result


def transferable(config: RunConfig, document: Document) -> dict[str, Any]:
    """The content of the DeepSpeed JSON without what the run decides, and without precision: for a run in float32."""
    given = _without_auto(document.value)
    for path, *_ in _decided(config, 1, _stage(given)):
        _remove(given, path)
    return {key: value for key, value in given.items() if key not in ("bf16", "fp16", "data_types")}


def deepspeed_document(config: RunConfig) -> Document:
    """The content of the DeepSpeed JSON, and the line of each key. Raises ConfigError where it cannot be read."""
    if isinstance(config.deepspeed, str):
        return read_deepspeed(Path(config.deepspeed))
    return Document(config.deepspeed, {(): "deepspeed"})


def _decided(config: RunConfig, world: int, stage: int) -> Iterator[tuple[Key, Any, str]]:
    """Key, value, and the setting of the run file that decides it."""
    packs = "the run file (train.samples_per_step, train.tokens_per_pack)"
    yield ("train_micro_batch_size_per_gpu",), 1, packs
    yield ("gradient_accumulation_steps",), 1, packs
    yield ("train_batch_size",), world, packs
    yield ("managed_gradient_accumulation",), True, "the loop, which marks the end of each step"
    yield ("gradient_allreduce_op",), "mean", "the loss, which is scaled for a mean over ranks"
    yield ("gradient_clipping",), config.train.clip, "train.clip"
    yield ("bf16", "enabled"), config.model.dtype == "bfloat16", "model.dtype"
    yield ("fp16", "enabled"), False, "model.dtype"
    yield ("checkpoint", "tag_validation"), "Fail", "the checkpoints, which must be of one step"
    yield ("checkpoint", "load_universal"), False, "the checkpoint, when it is loaded"
    if config.train.optimizer.name != "adamw":
        yield ("zero_allow_untested_optimizer",), True, f"train.optimizer.name, {config.train.optimizer.name}"
    if stage == 3:
        saved = "the export: without it weights are silently not saved"
        yield ("zero_optimization", "stage3_gather_16bit_weights_on_model_save"), True, saved


def _defaults(stage: int) -> Iterator[tuple[Key, Any]]:
    """Values that stand unless the JSON has others."""
    yield ("zero_optimization", "stage"), stage
    yield ("zero_force_ds_cpu_optimizer",), False  # the run builds the optimizer, also where it is offloaded
    yield ("steps_per_print",), 2**31  # the run prints its own lines
    yield ("wall_clock_breakdown",), False


def _contradictions(given: dict[str, Any], decided: dict[Key, tuple[Any, str]]) -> Iterator[Problem]:
    for key, (value, why) in decided.items():
        found = _get(given, key)
        if found is not None and not _same(found, value):
            yield Problem(
                key,
                f"{dotted(key)} is {show(found)}, but {why} makes it {show(value)}",
                'remove it, or write "auto": the run file decides it',
            )


def _same(found: Any, value: Any) -> bool:
    if isinstance(value, str) and isinstance(found, str):
        return found.lower() == value.lower()
    return isinstance(found, bool) == isinstance(value, bool) and bool(found == value)


def _unknown(given: dict[str, Any]) -> Iterator[Problem]:
    for section, names in KNOWN.items():
        path: Key = tuple(section.split(".")) if section else ()
        inside = _get(given, path)
        for name in inside if isinstance(inside, dict) else ():
            if name not in names and not name.startswith("_"):
                near = nearest(name, sorted(names))
                fix = f"did you mean '{near}'?" if near else "remove it: DeepSpeed would ignore it in silence"
                yield Problem((*path, name), f"{dotted((*path, name))} is not a setting of DeepSpeed", fix)


def _stage(given: dict[str, Any]) -> int:
    stage = _get(given, ("zero_optimization", "stage"))
    return stage if isinstance(stage, int) else 0


def _without_auto(value: dict[str, Any]) -> dict[str, Any]:
    """A copy without the settings that are left to us ("auto"), and without comments (keys that begin with _)."""
    return {
        key: _without_auto(inner) if isinstance(inner, dict) else inner
        for key, inner in json.loads(json.dumps(value)).items()
        if inner != "auto" and not key.startswith("_")
    }


def _get(value: Any, path: Key) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _put(value: dict[str, Any], path: Key, new: Any) -> None:
    for part in path[:-1]:
        value = value.setdefault(str(part), {})
    value[str(path[-1])] = new


def _remove(value: Any, path: Key) -> None:
    inside = _get(value, path[:-1])
    if isinstance(inside, dict):
        inside.pop(path[-1], None)
