"""Random numbers for every element of a sample, the same wherever the sample is computed.

An element's number depends on (seed, purpose, step, sample, position in the sample, feature), never on a generator's
state: not on rank, device, packing, accumulation, or whether activations are computed once or again.
"""

import torch
from torch import Tensor, nn

from dist_sft.config.sections import Neftune
from dist_sft.core import seeds
from dist_sft.model.context import PackContext


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN, _MIX1, _MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


CHUNK = {"cpu": 2**16, "cuda": 2**24}
"""Elements that are hashed at a time: what fits a core's cache, or keeps the int64 temporaries of a GPU small."""


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's int64 shift would copy the sign bit."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix64(values: Tensor) -> Tensor:
    """`core.seeds.mix64` on int64 tensors, bit for bit: integer products wrap around on every device."""
    z = values + _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def uniform(pack: PackContext, purpose: str, width: int) -> Tensor:
    """float32[T, width] in [0, 1), multiples of 2**-24; one stream per purpose."""
    assert pack.keys is not None, "evaluation draws no random numbers"
    stream = mix64(pack.keys ^ _signed(seeds.key(0, purpose)))
    token = mix64(stream + pack.positions)
    features = torch.arange(width, device=token.device, dtype=torch.int64)
    rows = max(1, CHUNK.get(token.device.type, 2**24) // width)
    return (
        torch.cat([_shift_right(mix64(part[:, None] + features), 40).float() for part in token.split(rows)]) * 2.0**-24
    )


def neftune(pack: PackContext, alpha: float, distribution: str, width: int) -> Tensor:
    """float32[T, width]: noise for the embeddings of a pack (Jain et al., 2023, algorithm 1).

    U(-1, 1) * alpha / sqrt(L * width) with L the tokens of the token's own sample, not of the pack; its norm over a
    sample is close to alpha / sqrt(3). "gaussian" has the same variance.
    """
    scale = alpha / torch.sqrt((pack.lengths * width).to(torch.float32))[:, None]
    draw = uniform(pack, "neftune", width)
    if distribution == "uniform":
        return (2 * draw - 1) * scale
    angle = uniform(pack, "neftune-angle", width)
    normal = torch.sqrt(-2 * torch.log1p(-draw)) * torch.cos(2 * torch.pi * angle)  # Box and Muller, 1958
    return normal * (scale / 3**0.5)


def add_neftune(embeddings: nn.Module, pack: PackContext, settings: Neftune) -> None:
    """Make an embedding layer add noise in training; evaluation stays clean."""

    def noisy(_: nn.Module, __: object, output: Tensor) -> Tensor:
        if pack.keys is None:
            return output
        noise = neftune(pack, settings.alpha, settings.distribution, output.shape[-1])
        return output + noise.to(output.dtype)

    embeddings.register_forward_hook(noisy)


class SampleDropout(nn.Module):
    """Dropout that a sample carries with it; inputs are [1, T, width] or [T, width]."""

    def __init__(self, p: float, name: str, pack: PackContext) -> None:
        super().__init__()
        self.p, self.name, self.context = p, name, pack

    def forward(self, values: Tensor) -> Tensor:
        if self.context.keys is None:
            return values
        dropped = uniform(self.context, f"dropout:{self.name}", values.shape[-1]) < self.p
        return values.masked_fill(dropped, 0) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def replace_dropout(model: nn.Module, pack: PackContext) -> int:
    """Put `SampleDropout` where a model has nn.Dropout with p > 0; how many were replaced."""
    found = [(name, module.p) for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p]
    for name, p in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, SampleDropout(p, name, pack))
    return len(found)
