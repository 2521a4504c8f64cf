"""flash-attention 2 and 3 (Dao, 2023; Shah et al., 2024): packages flash_attn and flash_attn_interface, CUDA."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dist_sft.model.attention.call import Call
from dist_sft.model.context import PackContext

HOPPER = (9, 0)
"""The one architecture that version 3 is made for."""


def installed() -> bool:
    """Whether a version is there that can run on this GPU."""
    return _kernel() is not None


def flash(query: Tensor, key: Tensor, value: Tensor, pack: PackContext, call: Call) -> Tensor:
    """See `Kernel`. The backward pass adds up in any order, unless torch is asked for deterministic algorithms."""
    attend = _kernel()
    assert attend is not None and not call.dropout, "not chosen for this"
    output = attend(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        cu_seqlens_q=pack.cu_seqlens,
        cu_seqlens_k=pack.cu_seqlens,
        max_seqlen_q=pack.longest,
        max_seqlen_k=pack.longest,
        softmax_scale=call.scaling,
        causal=True,
        window_size=(-1, -1) if call.window is None else (call.window - 1, 0),
        softcap=call.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output[0] if isinstance(output, tuple) else output  # some releases of version 3 add the log-sum-exp


@cache
def _kernel() -> Callable[..., Any] | None:
    """flash_attn_varlen_func of the newest version that runs here."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER
    for package in ("flash_attn_interface", "flash_attn") if hopper else ("flash_attn",):
        try:
            found = getattr(importlib.import_module(package), "flash_attn_varlen_func", None)
        except (ImportError, OSError):  # not there, or built for another torch
            continue
        if found is not None:
            return found
    return None
