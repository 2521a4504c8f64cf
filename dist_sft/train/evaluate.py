"""Loss on held-out rows."""

import torch
import torch.distributed as dist

from dist_sft.core.results import EvalResult
from dist_sft.train.loss import negative_log_likelihood
from dist_sft.train.parts import Training


@torch.no_grad()
def evaluate(run: Training, step: int) -> EvalResult:
    """Weighted mean of the token losses over all held-out rows: no noise, no dropout. Same on every rank."""
    engine, model, shares = run.engine, run.model, run.held_out
    training = model.module.training
    model.module.eval()
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for share in shares:
        for pack in share.packs:
            scores, weights = model.token_scores(engine, pack, None)
            total += (negative_log_likelihood(scores) * weights).sum(dtype=torch.float64)
        run.heartbeat.beat()
    dist.all_reduce(total)
    model.module.train(training)
    return EvalResult(
        step, float(total) / sum(s.totals.weight for s in shares), sum(s.totals.supervised for s in shares)
    )
