"""A causal language model that computes packs.

Pack -> embeddings (+ noise) -> attention inside samples -> head on supervised positions only -> scores

Axes: T tokens of the pack, P supervised positions, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dist_sft.data.pack import Pack
from dist_sft.model.context import Asked, PackContext


@dataclass
class PackedModel:
    """module: the model (transformers or peft); context: what its layers and its head read of the current pack."""

    module: nn.Module
    context: PackContext
    seed: int
    device: torch.device

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The module in evaluation mode, for as long as the block lasts."""
        training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)

    def token_scores(self, call: nn.Module, pack: Pack, step: int | None, mean: bool = False) -> tuple[Tensor, Tensor]:
        """What a loss must know of the supervised tokens of a pack.

        Args:
            call: what runs the forward pass: the DeepSpeed engine, or the module itself.
            step: keys noise and dropout; None in evaluation, which has neither.
            mean: whether the mean logit is wanted.
        Returns:
            scores float32[P, 3], see `model.scores`, and weights float32[P]; P is 1, with weight 0, where nothing is
            supervised.
        """
        at, weights = self._supervised(pack)
        targets = torch.from_numpy(pack.tokens).to(self.device, torch.int64)[at]
        return self._compute(call, pack, step, Asked(self._from(at, pack), targets, mean)), weights

    def sample_of(self, pack: Pack) -> Tensor:
        """int64[P]: the sample of the pack that each of its `token_scores` belongs to."""
        at, _ = self._supervised(pack)
        ends = torch.from_numpy(pack.cu_seqlens).to(self.device, torch.int64)
        return torch.bucketize(at, ends, right=True) - 1

    def logits(self, call: nn.Module, pack: Pack, step: int | None, at: Tensor) -> Tensor:
        """[P, V]: what the model predicts from the positions `at` (int64[P], within this rank's part of the pack)."""
        return self._compute(call, pack, step, Asked(at))

    def _compute(self, call: nn.Module, pack: Pack, step: int | None, asked: Asked) -> Tensor:
        self.context.enter(pack, self.device, self.seed, step)
        self.context.asked = asked
        output = call(
            input_ids=torch.from_numpy(pack.tokens[self.context.part]).to(self.device, torch.int64)[None],
            position_ids=self.context.positions[None],
            use_cache=False,
        )
        answer: Tensor = output.logits[0]
        return answer

    def _supervised(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """int64[P], float32[P]: where the tokens stand that this rank predicts, and their weights."""
        weights = torch.from_numpy(pack.weights).to(self.device)
        here = self.context.group.part(len(pack.tokens))
        at = weights.nonzero()[:, 0]
        at = at[(at > here.start) & (at <= here.stop)]  # token t is predicted by the rank that holds t - 1
        if len(at) == 0:  # a rank with nothing to learn still runs the head, for all ranks gather its parameters
            at = torch.zeros(1, dtype=torch.int64, device=self.device)
        return at, weights[at]

    def _from(self, at: Tensor, pack: Pack) -> Tensor:
        """int64[P]: where the tokens before `at` stand within this rank's part of the pack."""
        return (at - 1 - self.context.group.part(len(pack.tokens)).start).clamp(min=0)
