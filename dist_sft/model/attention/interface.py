"""What transformers calls in place of its own attention.

Registered under a name without a mask function, which makes transformers build no mask at all: what keeps samples apart
is written in the back ends and nowhere else. So everything that they would leave out in silence is refused here.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from dist_sft.core.errors import ModelError
from dist_sft.model.attention.call import Call, Kernel
from dist_sft.model.attention.choose import FLASH, FLEX, SEGMENTS, VARLEN
from dist_sft.model.attention.flash import flash
from dist_sft.model.attention.flex import flex
from dist_sft.model.attention.segments import segments
from dist_sft.model.attention.varlen import varlen
from dist_sft.model.context import PackContext

KERNELS: dict[str, Kernel] = {SEGMENTS: segments, VARLEN: varlen, FLASH: flash, FLEX: flex}


def register() -> None:
    """Make all back ends known to transformers."""
    for name, kernel in KERNELS.items():
        AttentionInterface.register(name, _attention(kernel))


def _attention(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    def attention(
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
        """query [1, H, S, D], key and value [1, G, S, D] of this rank's S tokens of the pack -> [1, S, H, D]."""
        pack: PackContext = module.pack_context  # type: ignore[assignment]
        _refuse(module, query, key, attention_mask, dropout, pack, rest)
        pack.windows.append(sliding_window)
        near = pack.group
        parts = near.to_heads(*(tensor[0].transpose(0, 1) for tensor in (query, key, value)))
        active = pack.attention_dropout if pack.keys is not None else 0.0
        first = near.rank * parts[0].shape[1]
        call = Call(scaling, sliding_window, softcap, active, _number(module, active), first)
        return near.to_tokens(kernel(*parts, pack, call))[None], None

    return attention


def _refuse(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    dropout: float,
    pack: PackContext,
    rest: dict[str, Any],
) -> None:
    name = type(module).__name__
    if mask is not None:
        raise ModelError(
            "somebody built an attention mask, which would be ignored",
            where=name,
            fix="call the model without attention_mask: samples are kept apart by the pack",
        )
    if key.shape[2] != query.shape[2]:
        raise ModelError("attention gets keys of a cache", where=name, fix="call the model with use_cache=False")
    assert query.shape[0] == 1 and query.shape[2] == len(pack.positions), "not the current pack"
    if dropout not in (0.0, pack.attention_dropout):
        raise ModelError(
            f"dropout of {dropout} reaches attention, and the run's is {pack.attention_dropout}",
            where=name,
            fix=f"set model.attention_dropout={dropout}, or choose another model",
        )
    if rest.get("s_aux") is not None or rest.get("is_causal") is False:
        raise ModelError("attention sinks and bidirectional attention are not supported", where=name)


def _number(module: nn.Module, dropout: float) -> int:
    """The layer's number; it tells the dropout of one layer from that of another."""
    number = getattr(module, "layer_idx", None)
    if number is None and dropout:
        raise ModelError(
            "its attention layers have no numbers, which dropout needs",
            where=type(module).__name__,
            fix="set model.attention_dropout=0",
        )
    return number if number is not None else 0
