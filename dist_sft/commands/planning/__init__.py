"""`dist-sft plan`: what a run will need, before a GPU is taken.

run file -> first rows (workload) -> memory, network, time, disk (plan) -> what would make it fit (changes)
"""

from dataclasses import dataclass
from typing import Any

from dist_sft.commands.planning.changes import Adjustment, changes, recommended
from dist_sft.commands.planning.machine import Machine
from dist_sft.commands.planning.plan import Plan, make_plan, on_machine, packer_of
from dist_sft.commands.planning.workload import look
from dist_sft.core.errors import ClusterError
from dist_sft.core.units import gib
from dist_sft.model.trainable import far_positions
from dist_sft.run.data import RunData
from dist_sft.run.opened import OpenedRun
from dist_sft.run.trainable import refuse_untrainable

__all__ = ["Machine", "Plan", "Planned", "packer_of", "plan_run"]


@dataclass(frozen=True)
class Planned:
    """changes: what was tried to make it fit; [] where it does, or where the GPU's memory is not known.

    notes: what else a user should know of the model.
    """

    plan: Plan
    changes: list[Adjustment]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        tried = [
            {"settings": c.settings, "price": c.price, "fits": c.fits, "device": c.plan.memory.device,
             "hours": c.plan.hours}
            for c in self.changes
        ]  # fmt: skip
        best = recommended(self.changes)
        found = {"changes": tried, "recommended": best.settings if best else None, "notes": list(self.notes)}
        return self.plan.as_dict() | found

    def refuse(self) -> None:
        """Raise ClusterError where it does not fit."""
        room = self.plan.machine.room
        if self.plan.fits is not False or room is None:
            return
        best = recommended(self.changes)
        part, size = max(
            ((part, getattr(self.plan.memory, part)) for part in ("weights", "gradients", "optimizer", "activations")),
            key=lambda pair: pair[1],
        )
        raise ClusterError(
            f"a rank needs {gib(self.plan.memory.device)}, most of it {part} ({gib(size)}), and a "
            f"{self.plan.machine.name} has room for {gib(room)}",
            where=f"{self.plan.machine.nodes} x {self.plan.machine.gpus} GPUs",
            fix=f"{best.settings} ({gib(best.plan.memory.device)}; {best.price})" if best
            else "nothing that was tried is enough: take GPUs with more memory, or a smaller model",
        )  # fmt: skip


def plan_run(run: OpenedRun, machine: Machine, rows: int) -> Planned:
    """Raises the first SftError that opening the data, the DeepSpeed settings or the machine give."""
    run = on_machine(run, machine)
    notes = refuse_untrainable(run)
    data = RunData.of(run)
    data.packer(machine.ranks)  # says clearly what does not go with the machine
    work = look(run.config, data, rows)
    longest = max(max(lengths, default=0) for lengths in work.lengths)
    notes += far_positions(run.architecture, longest, run.config.model.path)
    plan = make_plan(run, run.architecture, work, machine)
    return Planned(plan, changes(run, run.architecture, work, machine) if plan.fits is False else [], notes)
