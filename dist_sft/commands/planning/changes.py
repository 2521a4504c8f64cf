"""What would make a run fit, cheapest first: each change is planned as the run is, not guessed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from dist_sft.commands.planning.machine import Machine
from dist_sft.commands.planning.plan import Plan, make_plan
from dist_sft.commands.planning.workload import Workload
from dist_sft.config.deepspeed import portable
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import LoraTuning
from dist_sft.core.errors import ConfigError

RANK = 16
"""Of the adapter that is proposed where all weights do not fit."""
MOST_NODES = 64


@dataclass(frozen=True)
class Adjustment:
    """settings: what to write; price: what it costs; plan: with it."""

    settings: str
    price: str
    plan: Plan

    @property
    def fits(self) -> bool:
        return bool(self.plan.fits)


@dataclass(frozen=True)
class Step:
    """A run on a machine, and what was changed to get there."""

    settings: str
    price: str
    config: RunConfig
    machine: Machine


def changes(config: RunConfig, architecture: PretrainedConfig, work: Workload, machine: Machine) -> list[Adjustment]:
    """Each change alone, cheapest first; where none is enough, one upon the other until they are.

    Those that a run would refuse, or that are made already, are left out.
    """

    def planned(step: Step) -> Adjustment | None:
        try:
            return Adjustment(step.settings, step.price, make_plan(step.config, architecture, work, step.machine))
        except ConfigError:
            return None

    start = Step("", "", config, machine)
    alone = [change for turn in TURNS for change in _turned(turn, start, planned)]
    if any(change.fits for change in alone):
        return alone
    names, current, together = list[str](), start, list[Adjustment]()
    for turn in TURNS:
        for change in _turned(turn, current, planned):
            names = [*(name for name in names if not (name + change.settings).count("--nodes") > 1), change.settings]
            together.append(replace(change, settings=" and ".join(names), price="all of these"))
        current = _last(turn, current)
        if together and together[-1].fits:
            break
    return alone + [change for change in together if " and " in change.settings]


Turn = Callable[[RunConfig, Machine], Step | None]


def _turned(turn: Turn, start: Step, planned: Callable[[Step], Adjustment | None]) -> list[Adjustment]:
    """A change, made once; of nodes again and again, until it fits."""
    found, step = list[Adjustment](), turn(start.config, start.machine)
    while step is not None:
        if (change := planned(step)) is not None:
            found.append(change)
        if turn is not _double or change is None or change.fits:
            break
        step = turn(step.config, step.machine)
    return found


def _last(turn: Turn, start: Step) -> Step:
    step = turn(start.config, start.machine)
    while turn is _double and step is not None and (after := turn(step.config, step.machine)) is not None:
        step = after
    return step or start


def _recompute(config: RunConfig, machine: Machine) -> Step | None:
    if config.model.gradient_checkpointing is True:
        return None
    model = config.model.model_copy(update={"gradient_checkpointing": True})
    return Step("model.gradient_checkpointing=true", "up to a third more time", _with(config, model=model), machine)


def _shorten(config: RunConfig, machine: Machine) -> Step | None:
    """The shortest packs that hold the longest sample."""
    multiple = config.train.pack_multiple
    size = -(-config.data.context_length // multiple) * multiple
    if size >= config.train.tokens_per_pack:
        return None
    train = config.train.model_copy(update={"tokens_per_pack": size})
    return Step(f"train.tokens_per_pack={size}", "more, smaller micro-steps", _with(config, train=train), machine)


def _shard(config: RunConfig, machine: Machine) -> Step | None:
    if _zero(config).get("stage", 0) == 3 or machine.ranks == 1:
        return None
    sharded = _zeroed(config, stage=3)
    return Step("deepspeed.zero_optimization.stage=3", "weights travel in each micro-step", sharded, machine)


def _offload(config: RunConfig, machine: Machine) -> Step | None:
    zero = _zero(config)
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        return None
    to_host = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "stage": max(zero.get("stage", 0), 1)}
    setting = "deepspeed.zero_optimization.offload_optimizer.device=cpu"
    return Step(setting, "slower updates, on the host", _zeroed(config, **to_host), machine)


def _double(config: RunConfig, machine: Machine) -> Step | None:
    if 2 * machine.nodes > MOST_NODES or not _zero(config).get("stage", 0):
        return None
    return Step(f"--nodes {2 * machine.nodes}", "more GPUs", config, replace(machine, nodes=2 * machine.nodes))


def _adapt(config: RunConfig, machine: Machine) -> Step | None:
    if config.model.tuning.kind == "lora":
        return None
    model = config.model.model_copy(update={"tuning": LoraTuning(kind="lora", rank=RANK)})
    setting = f"model.tuning={{kind: lora, rank: {RANK}}}"
    return Step(setting, "an adapter is learned, not all weights", _with(config, model=model), machine)


TURNS: tuple[Turn, ...] = (_recompute, _shorten, _shard, _offload, _double, _adapt)
"""Cheapest first: time, then speed, then money, then what is learned."""


def _with(config: RunConfig, **sections: Any) -> RunConfig:
    return config.model_copy(update=sections)


def _zero(config: RunConfig) -> dict[str, Any]:
    content = portable(config).deepspeed
    assert isinstance(content, dict)
    zero: dict[str, Any] = content.get("zero_optimization", {})
    return zero


def _zeroed(config: RunConfig, **settings: Any) -> RunConfig:
    """With other settings of ZeRO."""
    content = portable(config).deepspeed
    assert isinstance(content, dict)
    return _with(config, deepspeed=content | {"zero_optimization": _zero(config) | settings})
