"""The GPUs that a run is planned for."""

import re
from dataclasses import dataclass

from dist_sft.core.errors import ConfigError
from dist_sft.estimate.cost import GPU_GIB, gpu_memory, peak_flops

RESERVED = 0.08
"""Share of a GPU's memory that the CUDA context, NCCL and a fragmented allocator take. An assumption, not measured."""
UNITS = {"GB": 10**9, "GIB": 2**30, "G": 2**30, "MIB": 2**20, "MB": 10**6}


@dataclass(frozen=True, slots=True)
class Machine:
    """nodes of `gpus` GPUs each; memory: bytes of one; peak: FLOP/s of one; None where it is not known.

    mfu  share of the peak that the model's own arithmetic reaches (Chowdhery et al., 2022, section 4.1)
    """

    nodes: int
    gpus: int
    name: str
    memory: float | None
    peak: float | None
    mfu: float

    @classmethod
    def of(cls, nodes: int, gpus: int, gpu: str | None, memory: str | None, mfu: float) -> "Machine":
        """From what a user types. Raises ConfigError for a GPU or a size that is not known."""
        if gpu is not None and (gpu_memory(gpu) is None or peak_flops(gpu) is None):
            raise ConfigError(
                f"'{gpu}' is not a GPU that is known here", where="--gpu",
                fix=f"one of {', '.join(GPU_GIB)}; or give --gpu-memory, e.g. 24GB: then time is not estimated",
            )  # fmt: skip
        room = _bytes(memory) if memory else gpu_memory(gpu) if gpu else None
        return cls(nodes, gpus, gpu or "GPU", room, peak_flops(gpu) if gpu else None, mfu)

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    @property
    def room(self) -> float | None:
        """Bytes of a GPU that a run can have."""
        return None if self.memory is None else self.memory * (1 - RESERVED)


def _bytes(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)\s*([A-Za-z]+)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not match[1].replace(".", "", 1).isdigit():
        raise ConfigError(f"'{text}' is not a size", where="--gpu-memory", fix="write e.g. 80GB or 24GiB")
    return float(match[1]) * unit
