"""What a run will need: memory, network, time, disk.

config, architecture, workload, machine ─> Plan.   Pure: nothing is trained, no weight and no row is read.
"""

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from dist_sft.commands.planning.machine import Machine
from dist_sft.commands.planning.workload import Workload
from dist_sft.config.run_config import RunConfig
from dist_sft.data.packing import Packer, StepPlan
from dist_sft.estimate.cost import BYTES, model_cost
from dist_sft.estimate.memory import Memory, estimate, state_bytes
from dist_sft.estimate.traffic import Collective, Sizes, traffic
from dist_sft.model.architecture import Architecture
from dist_sft.run.opened import OpenedRun


@dataclass(frozen=True)
class Host:
    """Bytes of main memory that a node's ranks and its share of the data service take.

    offloaded    weights, gradients and states of the optimizer that DeepSpeed keeps there
    checkpoints  the copy that is written while training goes on
    service      encoded samples on their way, at most, where the dealer runs
    loading      on the node of rank 0, once: transformers reads the weights there and hands them out
    """

    offloaded: float
    checkpoints: float
    service: float
    loading: float

    @classmethod
    def of(cls, config: RunConfig, sizes: Sizes, offloaded: float, machine: Machine) -> "Host":
        """offloaded: by each rank."""
        return cls(
            offloaded=offloaded * machine.gpus,
            checkpoints=_checkpoint(config, sizes) / machine.nodes if config.checkpoint.behind else 0.0,
            service=float(config.service.budget),
            loading=float(sizes.all * BYTES[config.model.dtype]),
        )

    @property
    def total(self) -> float:
        return max(self.offloaded + self.checkpoints, self.loading) + self.service


@dataclass(frozen=True)
class Plan:
    """Everything is bytes, seconds, tokens or counts; a time is None where the GPU's peak is not known.

    micro_steps      of each step that was looked at
    memory, fits     of one rank; None where the GPU's memory is not known
    between_nodes    bytes that a node sends to others in a step
    checkpoint_size  of one; disk: of all that are kept, and the one that is being written
    """

    machine: Machine
    zero_stage: int
    sizes: Sizes
    steps: int
    rows_looked_at: int
    steps_looked_at: int
    tokens_per_step: float
    micro_steps: list[int]
    balance: float
    fill: float
    advice: str | None
    memory: Memory
    fits: bool | None
    collectives: list[Collective]
    between_nodes: float
    seconds_per_step: float | None
    host: Host
    checkpoint_size: float
    disk: float

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens_per_step / self.seconds_per_step if self.seconds_per_step else None

    @property
    def hours(self) -> float | None:
        return self.steps * self.seconds_per_step / 3600 if self.seconds_per_step else None

    @property
    def gpu_hours(self) -> float | None:
        return self.hours * self.machine.ranks if self.hours else None

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a step."""
        return sum(one.sent for one in self.collectives)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        derived = {
            "ranks": self.machine.ranks,
            "room": self.machine.room,
            "sent_per_rank_and_step": self.sent,
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
        }
        memory = asdict(self.memory) | {"device": self.memory.device, "phases": self.memory.phases}
        collectives = [asdict(one) | {"sent": one.sent} for one in self.collectives]
        return asdict(self) | derived | {"memory": memory, "collectives": collectives,
                                         "host": asdict(self.host) | {"total": self.host.total}}  # fmt: skip


def on_machine(run: OpenedRun, machine: Machine) -> OpenedRun:
    """The run with a GPU for each of the machine's ranks."""
    cluster = run.config.cluster.model_copy(update={"workers": machine.ranks, "gpus_per_worker": 1.0})
    return run.changed(cluster=cluster)


def make_plan(run: OpenedRun, architecture: Architecture, work: Workload, machine: Machine) -> Plan:
    """Raises ConfigError where the DeepSpeed settings or sequence parallelism do not go with the machine."""
    run = on_machine(run, machine)
    config, merged = run.config, run.resolved_deepspeed
    stage: int = merged.get("zero_optimization", {}).get("stage", 0)
    sizes = Sizes.of(config, architecture, merged)
    cost = model_cost(architecture, trains_weights=config.model.tuning.kind == "full")
    dealt = work.dealt(packer_of(config, machine.ranks, cost.quadratic))
    micro_steps = [plan.micro_steps for plan in dealt]
    memory = estimate(
        config, architecture, merged, sizes.all, sizes.trained, "cuda", max(micro_steps), work.learned, sizes.persistent
    )
    collectives = traffic(config, merged, sizes, round(fmean(micro_steps)))
    text = architecture.get_text_config()
    flops = work.flops(cost, text.vocab_size * text.hidden_size)
    one, keep = _checkpoint(config, sizes), config.checkpoint
    return Plan(
        machine=machine,
        zero_stage=stage,
        sizes=sizes,
        steps=work.steps,
        rows_looked_at=work.rows,
        steps_looked_at=len(dealt),
        tokens_per_step=work.tokens,
        micro_steps=micro_steps,
        balance=fmean(plan.balance for plan in dealt),
        fill=fmean(plan.fill for plan in dealt),
        advice=next((advice for plan in dealt if (advice := plan.advice())), None),
        memory=memory,
        fits=None if machine.room is None else memory.device <= machine.room,
        collectives=collectives,
        between_nodes=sum(one.between_nodes(machine.gpus) for one in collectives),
        seconds_per_step=_seconds(config, flops, dealt, machine),
        host=Host.of(config, sizes, memory.host, machine),
        checkpoint_size=one,
        disk=one * (keep.keep + keep.keep_best + 1),
    )


def main_memory(run: OpenedRun, architecture: Architecture, machine: Machine) -> Host:
    """The plan's of a node, for which no row needs to be looked at. Raises ConfigError as `make_plan`."""
    run = on_machine(run, machine)
    config, merged = run.config, run.resolved_deepspeed
    sizes = Sizes.of(config, architecture, merged)
    return Host.of(config, sizes, estimate(config, architecture, merged, sizes.all, sizes.trained).host, machine)


def _checkpoint(config: RunConfig, sizes: Sizes) -> float:
    """Bytes of one, the same at any ZeRO stage."""
    return float(sizes.trained * state_bytes(config, stage=1))


def packer_of(config: RunConfig, ranks: int, quadratic: float) -> Packer:
    """As `run.data.RunData.packer`, for a run that is only thought of."""
    train = config.train
    return Packer(
        ranks, train.tokens_per_pack, train.packing, train.micro_steps, quadratic, train.pack_multiple,
        train.sequence_parallel,
    )  # fmt: skip


def _seconds(config: RunConfig, flops: float, dealt: list[StepPlan], machine: Machine) -> float | None:
    """Ranks wait for the slowest pack of each micro-step; recomputing costs a third more where it is done."""
    if machine.peak is None:
        return None
    again = 1 + float(config.model.gradient_checkpointing) / 3
    return flops / (machine.ranks * machine.peak * machine.mfu) * fmean(plan.balance for plan in dealt) * again
