"""How much memory a rank needs, before any weight is read.

architecture, tuning, DeepSpeed configuration, pack ─> bytes, by what they hold

ZeRO: Rajbhandari et al., 2020, section 3.1 and figure 1 (16 bytes a parameter with AdamW in mixed precision: 2 weight,
2 gradient, 12 master copy and moments). Activations: what the layers of a decoder block keep for the backward pass
(Korthikanti et al., 2022, section 4.1), with gated MLPs and attention that keeps no matrix of weights.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from dist_sft.config.sections import RunConfig
from dist_sft.model.cost import Widths
from dist_sft.model.scores import BLOCK, KEPT

BYTES = {"bfloat16": 2, "float32": 4}
LIVE = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank on its device, at the height of a step; `host` is what offloading puts beside it.

    weights, gradients, optimizer  of this rank's share; gathered: weights of other ranks that are in use under ZeRO-3
    activations                    of one pack; head: of the loss
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    head: float
    host: float

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations + self.head


def estimate(
    config: RunConfig, architecture: PretrainedConfig, deepspeed: dict[str, Any], parameters: int, trained: int
) -> Memory:
    """What a rank of a run holds.

    Args:
        deepspeed: the merged configuration; its train_batch_size is the number of ranks.
        parameters, trained: of the model with its adapters, and those that are updated.
    """
    size = BYTES[config.model.dtype]
    zero: dict[str, Any] = deepspeed.get("zero_optimization", {})
    stage, ranks = zero.get("stage", 0), deepspeed["train_batch_size"]
    optimizer = config.train.optimizer
    moments = {"adamw": 8, "adamw8bit": 2, "sgd": 4 if optimizer.momentum else 0}[optimizer.name]
    master = 4 if stage or size == 2 else 0  # DeepSpeed keeps its own float32 copy, also of float32 weights
    weights = parameters * size / (ranks if stage == 3 else 1)
    kept = trained * (master + moments) / (ranks if stage else 1)
    sums = 4 if deepspeed.get("data_types", {}).get("grad_accum_dtype") in ("fp32", "float32") else size
    gradients = trained * sums / (ranks if stage >= 2 else 1)
    at_host = {key: zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")}
    host = (kept if at_host["offload_optimizer"] else 0) + (weights if at_host["offload_param"] else 0)
    live = min(parameters, zero.get("stage3_max_live_parameters", LIVE)) * size if stage == 3 and ranks > 1 else 0
    return Memory(
        weights=0 if at_host["offload_param"] else weights,
        gradients=gradients,
        optimizer=0 if at_host["offload_optimizer"] else kept,
        gathered=min(live, parameters * size - weights) if not at_host["offload_param"] else live,
        activations=_activations(config, architecture, size),
        head=_head(config, architecture, trained == parameters, size),
        host=host,
    )


def _activations(config: RunConfig, architecture: PretrainedConfig, size: int) -> float:
    """Of one full pack: tensors that each kind of layer saves, by their width."""
    w = Widths.of(architecture)
    norms = 2 * (2 * w.hidden + 4 * w.hidden / size)  # the input, its float32 copy, and what is scaled
    rotated, output = (w.heads + 2 * w.kv_heads) * w.head_dim, w.heads * w.head_dim  # each is kept twice
    attention = 2 * rotated + 2 * output
    block = norms + attention + 4 * w.inner
    share = float(config.model.gradient_checkpointing)
    held = w.layers * w.hidden + (1 - share) * w.layers * block + (block if share else 0)
    return float(config.train.tokens_per_pack * size * held)


def _head(config: RunConfig, architecture: PretrainedConfig, trained: bool, size: int) -> float:
    """A block of logits with its gradient; and the gradient of the whole head, or else some logits that are kept."""
    text = architecture.get_text_config()
    logits = config.train.tokens_per_pack * text.vocab_size
    kept = text.vocab_size * text.hidden_size * size if trained else 4 * min(KEPT, logits)
    return float(2 * 4 * min(BLOCK["cuda"], logits) + kept)
