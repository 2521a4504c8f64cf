"""Causal attention inside samples, never between them.

Registered with transformers under two names; a name without a mask function makes transformers build no mask at all,
so what keeps samples apart is written here and nowhere else:

    segments   one attention per sample, any device; costs the sum of squares of the samples
    varlen     torch's variable-length kernel (flash attention), CUDA
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from dist_sft.core.errors import ModelError
from dist_sft.model.context import PackContext

SEGMENTS, VARLEN = "dist_sft_segments", "dist_sft_varlen"


def register() -> None:
    """Make both names known to transformers."""
    AttentionInterface.register(SEGMENTS, segments)
    AttentionInterface.register(VARLEN, varlen)


def choose(wanted: str, device: str, dtype: str, config: PretrainedConfig) -> str:
    """The implementation for model.attention. Raises ModelError where the kernel that is asked for cannot run."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    missing = next(
        (
            need
            for need, met in (
                ("a CUDA device", device == "cuda"),
                ("bfloat16", dtype == "bfloat16"),
                ("heads of at most 256", head <= 256),
                ("keys and values of one size", getattr(text, "v_head_dim", head) == head),
            )
            if not met
        ),
        None,
    )
    if wanted == "varlen" and missing:
        raise ModelError(f"model.attention is varlen, which needs {missing}", fix="use model.attention=auto")
    return SEGMENTS if wanted == "segments" or missing else VARLEN


def segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, G, T, D] with H a multiple of G heads -> [1, T, H, D]."""
    pack = _pack_of(module, query, attention_mask, dropout, sliding_window, rest)
    parts = [
        _causal(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling, sliding_window, softcap)
        for a, b in zip(pack.ends, pack.ends[1:], strict=False)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """As `segments`, in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        return segments(module, query, key, value, attention_mask, dropout, scaling, sliding_window, softcap, **rest)
    pack = _pack_of(module, query, attention_mask, dropout, sliding_window, rest)
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, heads, D]
    output = varlen_attn(
        query,
        key,
        value,
        pack.cu_seqlens,
        pack.cu_seqlens,
        pack.longest,
        pack.longest,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None], None


def _pack_of(
    module: nn.Module, query: Tensor, mask: Tensor | None, dropout: float, window: int | None, rest: dict[str, Any]
) -> PackContext:
    """The current pack, after refusing everything that these kernels would otherwise leave out without a word."""
    pack: PackContext = module.pack_context  # type: ignore[assignment]
    assert mask is None, "somebody built an attention mask; it would be ignored"
    assert query.shape[0] == 1 and query.shape[2] == pack.ends[-1], "not the current pack"
    if dropout:
        raise ModelError(
            "dropout on attention weights is not supported", fix="set attention_dropout to 0 in config.json"
        )
    if rest.get("s_aux") is not None or rest.get("is_causal") is False:
        raise ModelError("attention sinks and bidirectional attention are not supported", where=type(module).__name__)
    pack.windows.append(window)
    return pack


def _causal(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Attention of one sample: [1, H, L, D]."""
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    if softcap is None and (window is None or window >= length):
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    near = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if window is not None:
        near = near.triu(1 - window)
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=near, scale=scaling, enable_gqa=grouped
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~near, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
