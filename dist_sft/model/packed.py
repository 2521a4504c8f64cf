"""A causal language model that computes packs.

Pack -> embeddings (+ noise) -> attention inside samples -> head on supervised positions only -> nll

Axes: T tokens of the pack, P supervised positions, V vocabulary.
"""

import inspect
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dist_sft.data.pack import Pack
from dist_sft.model.context import PackContext


@dataclass
class PackedModel:
    """module: the model (transformers or peft); context: what its layers read of the current pack."""

    module: nn.Module
    context: PackContext
    seed: int
    device: torch.device
    _keeps: bool = field(init=False)

    def __post_init__(self) -> None:
        base: nn.Module = getattr(self.module, "get_base_model", lambda: self.module)()  # peft's, or itself
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters

    def token_losses(self, call: nn.Module, pack: Pack, step: int | None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the supervised tokens of a pack.

        Args:
            call: what runs the forward pass: the DeepSpeed engine, or the module itself.
            step: keys noise and dropout; None in evaluation, which has neither.
        Returns:
            nll float32[P] in nats, and weights float32[P]; P is 1, with weight 0, where nothing is supervised.
        """
        at, weights = self._supervised(pack)
        here = self.context.neighbours.part(len(pack.tokens))
        logits = self.logits(call, pack, step, (at - 1 - here.start).clamp(min=0))
        targets = torch.from_numpy(pack.tokens).to(self.device, torch.int64)[at]
        return nn.functional.cross_entropy(logits.float(), targets, reduction="none"), weights

    def logits(self, call: nn.Module, pack: Pack, step: int | None, at: Tensor) -> Tensor:
        """[P, V]: what the model predicts from the positions `at` (int64[P], within this rank's part of the pack)."""
        self.context.enter(pack, self.device, self.seed, step)
        output = call(
            input_ids=torch.from_numpy(pack.tokens[self.context.part]).to(self.device, torch.int64)[None],
            position_ids=self.context.positions[None],
            use_cache=False,
            **({"logits_to_keep": at} if self._keeps else {}),
        )
        return output.logits[0] if self._keeps else output.logits[0, at]

    def _supervised(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """int64[P], float32[P]: where the tokens stand that this rank predicts, and their weights."""
        weights = torch.from_numpy(pack.weights).to(self.device)
        here = self.context.neighbours.part(len(pack.tokens))
        at = weights.nonzero()[:, 0]
        at = at[(at > here.start) & (at <= here.stop)]  # token t is predicted by the rank that holds t - 1
        if len(at) == 0:  # a rank with nothing to learn still runs the head, for all ranks gather its parameters
            at = torch.zeros(1, dtype=torch.int64, device=self.device)
        return at, weights[at]
