"""NEFTune and its family (Jain et al., 2023): noise on the inputs of blocks, in training only.

settings, step -> alpha of a block -> scale of each token -> noise of each element

The noise is added to what a block reads, never to a weight: nothing of it is saved, and a head that shares the
embeddings' weights does not see it.
"""

import torch
from torch import Tensor, nn

from dist_sft.config.noise import Neftune
from dist_sft.model.branches import decoder_blocks, hidden_states
from dist_sft.model.context import PackContext
from dist_sft.model.randomness import draw, signed_unit
from dist_sft.model.strengths import factor, strengths


def scales(pack: PackContext, settings: Neftune, alpha: float, width: int) -> Tensor:
    """float32[T]: alpha / sqrt(L * width), with L the tokens of the token's own sample, whatever part of it is noisy.

    0 on padding, and on the tokens that settings.where leaves out. settings.scale "row" takes for L the tokens of the
    whole pack, padding included, as transformers' hook does.
    """
    lengths = pack.lengths if settings.scale == "sample" else torch.full_like(pack.lengths, pack.ends[-1])
    scale = alpha / torch.sqrt((lengths * width).to(torch.float32))
    silent = pack.padding
    if settings.where != "all":
        silent = silent | (pack.answers if settings.where == "prompt" else ~pack.answers)
    return scale.masked_fill(silent, 0)


def noise(pack: PackContext, settings: Neftune, alpha: float, width: int, block: int = 0) -> Tensor:
    """float32[T, width]: noise of variance scale**2 / 3 on each element, whatever the distribution.

    The norm over a sample is close to alpha / sqrt(3) (algorithm 1 of the paper: U(-1, 1) * scale).
    """
    purpose = f"neftune:{block}" if block else "neftune"
    scale = scales(pack, settings, alpha, width)[:, None]
    match settings.distribution:
        case "uniform":
            return draw(pack, purpose, width, torch.int32, signed_unit).mul_(scale)
        case "gaussian":
            pairs = draw(pack, purpose, 2 * -(-width // 2), torch.int32, _normal)
            return pairs[:, :width].mul(scale / 3**0.5)
        case "symmetric":
            return draw(pack, purpose, width, torch.int8, _sign).mul_(scale / 3**0.5)


def _normal(integers: Tensor) -> Tensor:
    """int32[..., 2n] -> standard normal numbers (Box & Muller, 1958), two for two."""
    first, angle = signed_unit(integers).chunk(2, dim=-1)
    radius = first.mul(0.5).add_(0.5).log_().mul_(-2).sqrt_()
    angle = angle * torch.pi
    return torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=-1)


def _sign(integers: Tensor) -> Tensor:
    """int8 -> -1 or 1 (Rademacher's distribution)."""
    return (integers >> 7).float().mul_(2).add_(1)


def add_neftune(model: nn.Module, pack: PackContext, settings: Neftune) -> None:
    """Make a model add noise in training; evaluation stays clean. Raises ModelError."""
    blocks = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    chosen = strengths(settings, blocks)
    if 0 in chosen:  # where the paper puts it, and transformers: some models scale the embeddings before block 0
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        embeddings.register_forward_hook(lambda _module, _args, output: _noisy(output, pack, settings, chosen[0], 0))
    if set(chosen) <= {0}:
        return
    for block, module in enumerate(decoder_blocks(model)):
        if block and block in chosen:
            _at_input(module, pack, settings, chosen[block], block)


def _at_input(module: nn.Module, pack: PackContext, settings: Neftune, alpha: float, block: int) -> None:
    def before(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        states = _noisy(hidden_states(args, kwargs), pack, settings, alpha, block)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    module.register_forward_pre_hook(before, with_kwargs=True)


@torch.compiler.disable  # else a graph would be compiled for each step, whose strength is a number in it
def _noisy(states: Tensor, pack: PackContext, settings: Neftune, alpha: float, block: int) -> Tensor:
    if pack.step is None:
        return states
    now = alpha * factor(settings.schedule, pack.step, pack.steps)
    return states + noise(pack, settings, now, states.shape[-1], block).to(states.dtype)
