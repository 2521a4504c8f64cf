"""What ranks send each other in a step.

parameters, ZeRO stage, micro-steps ─> collectives: what, how often, how many bytes, between whom

Rajbhandari et al., 2020, section 7: plain data parallelism and ZeRO-1/2 exchange the gradients and, in all, as
much again for the weights; ZeRO-3 gathers the weights forward and backward, and scatters the gradients, in each
micro-step. hpZ (Wang et al., 2023, section 3.2) gathers from a second copy inside of a group after the first pass of
a step. What a rank sends of B bytes: B (R - 1) / R in a gather or scatter among R ranks, twice that in an all-reduce
(Patarasuk and Yuan, 2009). Compared with what DeepSpeed 0.19.8 really carries in tests/estimate/test_traffic.py: there,
the backward pass gathers again what the forward pass had, whatever stage3_max_reuse_distance is.
"""

from dataclasses import dataclass
from typing import Any

from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import FullTuning
from dist_sft.estimate.cost import BYTES, Widths
from dist_sft.model.architecture import Architecture
from dist_sft.model.capacity import count_trained, tensor_sizes

PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
"""How often a ring carries the whole."""
PERSISTENT = 100_000
"""DeepSpeed's default of stage3_param_persistence_threshold."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, in parameters.

    all, trained  with adapters
    persistent    in tensors that ZeRO-3 keeps whole on each rank
    not_again     frozen, and below all that is trained: a backward pass does not need them
    """

    all: int
    trained: int
    persistent: int = 0
    not_again: int = 0

    @classmethod
    def of(cls, config: RunConfig, architecture: Architecture, deepspeed: dict[str, Any]) -> "Sizes":
        """From the layers as the model lays them out; no weights are read."""
        tuning = config.model.tuning
        trained = count_trained(architecture.layout, tuning)
        base, added = tensor_sizes(architecture.layout, tuning)
        zero: dict[str, Any] = deepspeed.get("zero_optimization", {})
        threshold = zero.get("stage3_param_persistence_threshold", PERSISTENT)
        return cls(
            all=trained.base + (0 if isinstance(tuning, FullTuning) else trained.total),
            trained=trained.total,
            persistent=sum(size for size in (*base, *added) if size <= threshold),
            not_again=0 if isinstance(tuning, FullTuning) else _below(config, architecture),
        )


def _below(config: RunConfig, architecture: Architecture) -> int:
    """Parameters below the first adapter: the embedding, the first norm, and what projects it to queries, keys and
    values. None where blocks are recomputed, for then the embedding's output is made to need a gradient."""
    if config.model.gradient_checkpointing:
        return 0
    text, w = architecture.get_text_config(), Widths.of(architecture)
    table = 0 if text.tie_word_embeddings else w.hidden * text.vocab_size
    return table + w.hidden * (w.heads + 2 * w.kv_heads) * w.head_dim + w.hidden


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of exchange in a step.

    kind   all-gather, reduce-scatter, all-reduce
    what   is exchanged; times: in a step
    bytes  the whole tensor, on one occasion
    ranks  that take part
    """

    kind: str
    what: str
    times: int
    bytes: float
    ranks: int

    @property
    def carried(self) -> float:
        """Bytes of the step: the whole tensors, as often as they are exchanged."""
        return self.times * self.bytes

    @property
    def sent(self) -> float:
        """Bytes that each rank sends in a step."""
        return self.carried * PASSES[self.kind] * (self.ranks - 1) / self.ranks

    def between_nodes(self, per_node: int) -> float:
        """Of these, bytes that a node of so many ranks sends to others: a ring leaves each node once."""
        return self.sent if self.ranks > per_node else 0.0


def traffic(config: RunConfig, deepspeed: dict[str, Any], sizes: Sizes, micro_steps: int) -> list[Collective]:
    """The collectives of a step; [] for one rank. deepspeed: the merged configuration, see `config.deepspeed`."""
    zero: dict[str, Any] = deepspeed.get("zero_optimization", {})
    stage, ranks, size = zero.get("stage", 0), deepspeed["train_batch_size"], BYTES[config.model.dtype]
    if ranks == 1:
        return []
    gradients = sizes.trained * size
    if stage == 3:
        return [*_gathers(zero, sizes, micro_steps, ranks, size),
                Collective("reduce-scatter", "gradients", micro_steps, gradients, ranks)]  # fmt: skip
    reductions = micro_steps if stage == 2 else 1  # before the update; ZeRO-2 keeps no whole gradients between packs
    found = [Collective("all-reduce", "gradients", reductions, gradients, ranks)]
    return found + ([Collective("all-gather", "updated weights", 1, gradients, ranks)] if stage else [])


def _gathers(zero: dict[str, Any], sizes: Sizes, micro_steps: int, ranks: int, size: int) -> list[Collective]:
    """Of weights under ZeRO-3."""
    forward = (sizes.all - sizes.persistent) * size
    backward = forward - sizes.not_again * size
    group = min(zero.get("zero_hpz_partition_size", 1), ranks)
    persistent = [Collective("all-gather", "small weights, updated", 1, sizes.persistent * size, ranks)]
    if group > 1:
        again = [Collective("all-gather", "weights, forward again", micro_steps - 1, forward, group),
                 Collective("all-gather", "weights, backward", micro_steps, backward, group)]  # fmt: skip
        found = [Collective("all-gather", "weights, forward", 1, forward, ranks), *again, *persistent]
    else:
        found = [Collective("all-gather", "weights, forward", micro_steps, forward, ranks),
                 Collective("all-gather", "weights, backward", micro_steps, backward, ranks), *persistent]  # fmt: skip
    return [one for one in found if one.carried]
