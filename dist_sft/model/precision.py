"""Which numbers matrices are multiplied in."""

import functools

import torch


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, but float32 where a CPU has no bfloat16 arithmetic and would emulate it, ten times slower."""
    emulated = device.type == "cpu" and dtype == torch.bfloat16 and not cpu_has_bfloat16()
    return torch.float32 if emulated else dtype


@functools.cache
def cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
