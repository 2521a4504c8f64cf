"""Can the nodes talk to each other on any port, and how fast do they add up a tensor?"""

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

MIB = 32
"""Size of the tensor: large enough that bandwidth counts, and not latency."""
ROUNDS = 3
PATIENCE = 60
"""Seconds for all nodes to meet."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """gigabytes: per second and node, as nccl-tests reckons it (2 (R - 1) / R bytes of the tensor); error: or ''."""

    gigabytes: float
    error: str = ""


class Listener:
    """A port that the kernel chooses, as torch, NCCL and gloo let it choose theirs. An actor, pinned to a node."""

    def __init__(self, address: str) -> None:
        self._socket = socket.create_server((address, 0), backlog=64)

    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def reach(self, addresses: list[tuple[str, int]], timeout: float) -> list[str]:
        """Why this node cannot connect to each of the others; '' where it can."""
        return [_knock(address, port, timeout) for address, port in addresses]


def _knock(address: str, port: int, timeout: float) -> str:
    try:
        socket.create_connection((address, port), timeout=timeout).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def free_port(address: str) -> int:
    """For the store of the process group. It is given back, and taken again a moment later."""
    with contextlib.closing(socket.create_server((address, 0))) as server:
        return int(server.getsockname()[1])


def all_reduce(rank: int, world: int, address: str, port: int, backend: str, patience: float) -> Reduced:
    """Join a process group of one task per node, and add up a tensor some times. All ranks call this at once."""
    import torch
    import torch.distributed as dist

    if backend == "nccl":
        torch.cuda.set_device(0)
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        store = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=timedelta(seconds=patience))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=patience))
        try:
            return Reduced(_bandwidth(torch.ones(MIB << 18, device="cuda" if backend == "nccl" else "cpu"), world))
        finally:
            dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:  # torch.distributed's own errors are RuntimeErrors
        return Reduced(0.0, str(error).strip().splitlines()[0])


def _bandwidth(tensor: "torch.Tensor", world: int) -> float:  # type: ignore[name-defined]  # noqa: F821
    import torch.distributed as dist

    dist.all_reduce(tensor)
    dist.barrier()
    began = time.monotonic()
    for _ in range(ROUNDS):
        dist.all_reduce(tensor)
    tensor.sum().item()  # waits for the GPU
    seconds = (time.monotonic() - began) / ROUNDS
    return tensor.nbytes * 2 * (world - 1) / world / seconds / 1e9
