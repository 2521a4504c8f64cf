"""Which numbers matrices are multiplied in.

A CPU without bfloat16 arithmetic emulates it, ten times slower than float32. There each product is computed in float32
and rounded once: faster, and no less exact than on a device that has bfloat16.
"""

import functools
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WITHOUT_BFLOAT16 = ("SSE", "AVX2", "AVX512_CORE_VNNI")
"""How the instruction sets of oneDNN begin that multiply no bfloat16 (its guide "CPU Dispatcher Control")."""


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where it would be emulated."""
    emulated = device.type == "cpu" and dtype == torch.bfloat16 and not cpu_has_bfloat16()
    return torch.float32 if emulated else dtype


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the processor has it, and oneDNN, which multiplies for torch, may use it."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(has) and not limit.startswith(WITHOUT_BFLOAT16) and limit not in ("AVX", "AVX512_CORE")


def multiply_without_emulation(model: nn.Module, device: torch.device) -> int:
    """Let the linear layers of a model multiply in `matmul_dtype`; how many had to be changed."""
    changed = 0
    for module in model.modules():
        if type(module) is nn.Linear and matmul_dtype(device, module.weight.dtype) != module.weight.dtype:
            module.forward = functools.partial(_linear, module)  # type: ignore[method-assign]
            changed += 1
    return changed


def _linear(module: nn.Linear, values: Tensor) -> Tensor:
    result: Tensor = _Float32Linear.apply(values, module.weight, module.bias)
    return result


class _Float32Linear(torch.autograd.Function):
    """values [..., I], weight [O, I], bias [O] or None -> [..., O], in the dtype of the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        product = nn.functional.linear(_rows(values), weight.float(), None if bias is None else bias.float())
        return product.to(values.dtype).view(*values.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        of_values, of_weight, of_bias = ctx.needs_input_grad
        wide = _rows(gradient)
        return (
            (wide @ weight.float()).to(values.dtype).view_as(values) if of_values else None,
            (wide.t() @ _rows(values)).to(weight.dtype) if of_weight else None,
            wide.sum(0).to(weight.dtype) if of_bias else None,
        )


def _rows(values: Tensor) -> Tensor:
    """float32[N, I]"""
    return values.float().flatten(0, -2)
