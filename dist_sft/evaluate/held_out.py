"""Loss of a model on rows that it does not learn.

module, shares ─ scores ─> weighted losses, over all and by group ─ one all-reduce ─> HeldOut
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dist_sft.core.results import HeldOut
from dist_sft.data.groups import Groups, added
from dist_sft.data.pack import StepShare
from dist_sft.evaluate.sums import add_by_group
from dist_sft.model.packed import PackedModel


def negative_log_likelihood(scores: Tensor) -> Tensor:
    """float32[P], nats, from scores float32[P, 3]: what evaluation measures, whatever is trained."""
    return scores[:, 0] - scores[:, 1]


def _alone(sums: Tensor) -> None:
    """One rank holds all packs."""


@torch.no_grad()
def held_out_loss(
    model: PackedModel,
    shares: Sequence[StepShare],
    groups: Groups,
    call: nn.Module | None = None,
    add_up: Callable[[Tensor], object] = _alone,
    after_share: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Weighted mean of the token losses over all rows: no noise, no dropout. Same on every rank.

    Args:
        shares: this rank's packs, and the totals of all ranks; one row at least has a weight.
        groups: that the rows are counted in.
        call: what runs the forward pass; None: the module itself.
        add_up: sums float64[1 + G] over the ranks, in place; called once.
        after_share: called after each share.
    """
    sums = torch.zeros(1 + len(groups), dtype=torch.float64, device=model.device)
    with model.evaluating():
        for share in shares:
            for pack in share.packs:
                samples = model.sample_of(pack)
                scores, weights = model.token_scores(call or model.module, pack, None)
                losses = negative_log_likelihood(scores) * weights
                sums[0] += losses.sum(dtype=torch.float64)
                add_by_group(sums[1:], losses, samples, pack)
            after_share()
    add_up(sums)
    total, *by_group = sums.tolist()
    loss = total / sum(share.totals.weight for share in shares)
    scored = sum(share.totals.supervised for share in shares)
    return HeldOut(
        loss, scored, groups.losses(by_group, added(total for share in shares for total in share.totals.groups))
    )
