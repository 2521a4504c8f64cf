"""What would make a run fit, cheapest first: each change is planned as the run is, not guessed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_sft.commands.planning.machine import Machine
from dist_sft.commands.planning.plan import Plan, make_plan
from dist_sft.commands.planning.workload import Workload
from dist_sft.config.sections import LoraTuning
from dist_sft.core.errors import ConfigError
from dist_sft.model.architecture import Architecture
from dist_sft.run.opened import OpenedRun

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
class Candidate:
    """A run on a machine, and what was changed to get there."""

    settings: str
    price: str
    run: OpenedRun
    machine: Machine


def changes(run: OpenedRun, architecture: Architecture, work: Workload, machine: Machine) -> list[Adjustment]:
    """Each change alone, cheapest first; where none is enough, one upon the other until they are.

    Those that a run would refuse, or that are made already, are left out.
    """

    def planned(step: Candidate) -> Adjustment | None:
        try:
            return Adjustment(step.settings, step.price, make_plan(step.run, architecture, work, step.machine))
        except ConfigError:
            return None

    start = Candidate("", "", run, machine)
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


Turn = Callable[[OpenedRun, Machine], Candidate | None]


def _turned(turn: Turn, start: Candidate, planned: Callable[[Candidate], Adjustment | None]) -> list[Adjustment]:
    """A change, made once; of nodes again and again, until it fits."""
    found, step = list[Adjustment](), turn(start.run, start.machine)
    while step is not None:
        if (change := planned(step)) is not None:
            found.append(change)
        if turn is not _double or change is None or change.fits:
            break
        step = turn(step.run, step.machine)
    return found


def _last(turn: Turn, start: Candidate) -> Candidate:
    step = turn(start.run, start.machine)
    while turn is _double and step is not None and (after := turn(step.run, step.machine)) is not None:
        step = after
    return step or start


def _recompute(run: OpenedRun, machine: Machine) -> Candidate | None:
    if run.config.model.gradient_checkpointing is True:
        return None
    model = run.config.model.model_copy(update={"gradient_checkpointing": True})
    setting = "model.gradient_checkpointing=true"
    return Candidate(setting, "up to a third more time", run.changed(model=model), machine)


def _shorten(run: OpenedRun, machine: Machine) -> Candidate | None:
    """The shortest packs that hold the longest sample."""
    config = run.config
    multiple = config.train.pack_multiple
    size = -(-config.data.context_length // multiple) * multiple
    if size >= config.train.tokens_per_pack:
        return None
    train = config.train.model_copy(update={"tokens_per_pack": size})
    return Candidate(f"train.tokens_per_pack={size}", "more, smaller micro-steps", run.changed(train=train), machine)


def _shard(run: OpenedRun, machine: Machine) -> Candidate | None:
    if _zero(run).get("stage", 0) == 3 or machine.ranks == 1:
        return None
    sharded = _zeroed(run, stage=3)
    return Candidate("deepspeed.zero_optimization.stage=3", "weights travel in each micro-step", sharded, machine)


def _offload(run: OpenedRun, machine: Machine) -> Candidate | None:
    zero = _zero(run)
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        return None
    to_host = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "stage": max(zero.get("stage", 0), 1)}
    setting = "deepspeed.zero_optimization.offload_optimizer.device=cpu"
    return Candidate(setting, "slower updates, on the host", _zeroed(run, **to_host), machine)


def _double(run: OpenedRun, machine: Machine) -> Candidate | None:
    if 2 * machine.nodes > MOST_NODES or not _zero(run).get("stage", 0):
        return None
    return Candidate(f"--nodes {2 * machine.nodes}", "more GPUs", run, replace(machine, nodes=2 * machine.nodes))


def _adapt(run: OpenedRun, machine: Machine) -> Candidate | None:
    """A preset of full tuning goes with it: what it filled in stays as it is."""
    if run.config.model.tuning.kind == "lora":
        return None
    model = run.config.model.model_copy(update={"tuning": LoraTuning(kind="lora", rank=RANK)})
    train = run.config.train
    if train.preset == "full":
        train = train.model_copy(update={"preset": "none"})
    setting = f"model.tuning={{kind: lora, rank: {RANK}}}"
    return Candidate(setting, "an adapter is learned, not all weights", run.changed(model=model, train=train), machine)


TURNS: tuple[Turn, ...] = (_recompute, _shorten, _shard, _offload, _double, _adapt)
"""Cheapest first: time, then speed, then money, then what is learned."""


def recommended(adjustments: Sequence[Adjustment]) -> Adjustment | None:
    """The first that fits: they are ordered, cheapest first."""
    return next((adjustment for adjustment in adjustments if adjustment.fits), None)


def _zero(run: OpenedRun) -> dict[str, Any]:
    zero: dict[str, Any] = run.deepspeed.value.get("zero_optimization", {})
    return zero


def _zeroed(run: OpenedRun, **settings: Any) -> OpenedRun:
    """With other settings of ZeRO."""
    return run.changed(deepspeed=run.deepspeed.value | {"zero_optimization": _zero(run) | settings})
