"""torch.nn.attention.varlen: flash attention 2 as it comes with torch, CUDA."""

from torch import Tensor

from dist_sft.model.attention.call import Call
from dist_sft.model.context import PackContext


def varlen(query: Tensor, key: Tensor, value: Tensor, pack: PackContext, call: Call) -> Tensor:
    """See `Kernel`. torch 2.13 knows windows, scales and grouped heads here, and neither soft caps nor dropout."""
    from torch.nn.attention.varlen import varlen_attn

    assert call.softcap is None and not call.dropout, "not chosen for these"
    output = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        pack.cu_seqlens,
        pack.cu_seqlens,
        pack.longest,
        pack.longest,
        scale=call.scaling,
        window_size=(-1 if call.window is None else call.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output
