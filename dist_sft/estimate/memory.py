"""How much memory a rank needs, before any weight is read.

architecture, tuning, DeepSpeed configuration, pack ─> bytes, by what they hold and by when they are held

ZeRO: Rajbhandari et al., 2020, section 3.1 and figure 1 (16 bytes a parameter with AdamW in mixed precision: 2 weight,
2 gradient, 12 master copy and moments). Activations: what the layers of a decoder block keep for the backward pass
(Korthikanti et al., 2022, section 4.1), with gated MLPs and attention that keeps no matrix of weights. Buffers: what
DeepSpeed 0.19.8 allocates. Compared with the resident memory of real ranks in tests/estimate/test_memory_measured.py.
"""

from dataclasses import dataclass
from typing import Any

from dist_sft.config.deepspeed import Device
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import LoraTuning
from dist_sft.estimate.cost import BYTES, Widths
from dist_sft.model.architecture import Architecture
from dist_sft.model.capacity import count_trained
from dist_sft.model.sizes import BLOCK, KEPT

BUCKET = 500_000_000
"""DeepSpeed's default of reduce_bucket_size, in parameters."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's default of sub_group_size: parameters that ZeRO-3 updates at a time."""
PREFETCH = 50_000_000
"""DeepSpeed's default of stage3_prefetch_bucket_size."""
QK_NORMS = ("qwen3", "gemma3", "olmo2")
"""Families whose queries and keys are normalised before they are rotated."""
MOMENTS = {"adamw": 8, "adamw8bit": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank on its device, at the height of a step; `host` is what offloading puts beside it.

    weights, gradients, optimizer  of this rank's share
    gathered     weights of other ranks that are in use under ZeRO-3, and small ones that stay
    buckets      that gradients are collected in; sending: the copy that goes to other ranks
    activations  of one pack; head: of the loss
    update       copies that exist while the optimizer works, when activations do not
    early        of the gradients, those that are there while all activations are
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    buckets: float
    sending: float
    activations: float
    head: float
    update: float
    early: float
    host: float

    @property
    def phases(self) -> dict[str, float]:
        """Bytes on the device, when it is most in each phase of a step."""
        always = self.weights + self.optimizer + self.buckets
        return {
            "backward begins": always + self.early + self.gathered + self.activations + self.head,
            "backward ends": always + self.gradients + self.gathered + self.sending,
            "update": always + self.gradients + self.update,
        }

    @property
    def device(self) -> float:
        return max(self.phases.values())


def estimate(
    config: RunConfig,
    architecture: Architecture,
    deepspeed: dict[str, Any],
    parameters: int,
    trained: int,
    device: Device = "cuda",
    micro_steps: int = 2,
    supervised: float = 1.0,
    persistent: int = 0,
) -> Memory:
    """What a rank of a run holds.

    Args:
        deepspeed: the merged configuration; its train_batch_size is the number of ranks.
        parameters, trained: of the model with its adapters, and those that are updated.
        device: on CPU a buffer counts only as far as it is written to, and the optimizer is not fused.
        micro_steps: from the second on, a pack meets the gradients of the first.
        supervised: share of the tokens of a pack that is learned.
        persistent: parameters in tensors that ZeRO-3 keeps whole, see `estimate.traffic.Sizes`.
    """
    size = BYTES[config.model.dtype]
    zero: dict[str, Any] = deepspeed.get("zero_optimization", {})
    stage, ranks = zero.get("stage", 0), deepspeed["train_batch_size"]
    at_host = {key: zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")}
    weights = parameters * size / (ranks if stage == 3 else 1)
    optimizer = trained * state_bytes(config, stage) / (ranks if stage else 1)
    sums = 4 if deepspeed.get("data_types", {}).get("grad_accum_dtype") in ("fp32", "float32") else size
    gradients = trained * sums / (ranks if stage >= 2 else 1)
    offloaded = optimizer + gradients if at_host["offload_optimizer"] else 0
    bucket = zero.get("reduce_bucket_size", BUCKET) if stage else 0
    used = min(bucket, trained) * size
    held = 0 if offloaded else gradients
    return Memory(
        weights=0 if at_host["offload_param"] else weights,
        gradients=held,
        optimizer=0 if offloaded else optimizer,
        gathered=_gathered(zero, architecture, parameters, persistent, size) if stage == 3 and ranks > 1 else 0,
        buckets=used if device == "cpu" else bucket * size,
        sending=used,
        activations=_activations(config, architecture, size),
        head=_head(config, architecture, config.model.tuning.kind == "full", size, device, supervised),
        update=0 if offloaded else _update(zero, trained / (ranks if stage else 1), stage, architecture, device),
        early=held if stage >= 2 or micro_steps > 1 else 0,
        host=offloaded + (weights if at_host["offload_param"] else 0),
    )


def memory_of_a_rank(
    config: RunConfig, architecture: Architecture, deepspeed: dict[str, Any], device: Device, supervised: float
) -> Memory:
    """`estimate` for a run with its own number of parameters. supervised: share of all tokens."""
    trained = count_trained(architecture.layout, config.model.tuning)
    adapters = trained.total if config.model.tuning.kind == "lora" else 0
    return estimate(
        config, architecture, deepspeed, trained.base + adapters, trained.total, device, supervised=supervised
    )


def state_bytes(config: RunConfig, stage: int) -> int:
    """Of the optimizer, for each trained parameter. DeepSpeed keeps a float32 copy, also of float32 weights."""
    optimizer = config.train.optimizer
    moments = MOMENTS.get(optimizer.name, 4 if optimizer.momentum else 0)
    return moments + (4 if stage or config.model.dtype == "bfloat16" else 0)


def _gathered(zero: dict[str, Any], architecture: Architecture, parameters: int, persistent: int, size: int) -> float:
    """Whole weights of the module that computes, the largest is the head, of those that are fetched ahead, and of small
    ones."""
    text = architecture.get_text_config()
    ahead = zero.get("stage3_prefetch_bucket_size", PREFETCH)
    return float(size * min(parameters, text.vocab_size * text.hidden_size + ahead + persistent))


def _update(zero: dict[str, Any], share: float, stage: int, architecture: Architecture, device: Device) -> float:
    """Flat float32 gradients of what is updated at a time; and two numbers a parameter where AdamW is not fused."""
    text = architecture.get_text_config()
    at_a_time = min(share, zero.get("sub_group_size", SUB_GROUP)) if stage == 3 else share
    if stage == 0:
        return 8.0 * min(share, text.vocab_size * text.hidden_size) if device == "cpu" else 0.0
    return at_a_time * (12.0 if device == "cpu" else 4.0)


def _activations(config: RunConfig, architecture: Architecture, size: int) -> float:
    """Of one full pack: tensors that each kind of layer saves, by their width."""
    w, tuning = Widths.of(architecture), config.model.tuning
    adapters = isinstance(tuning, LoraTuning)
    normalized = 0 if adapters else w.hidden  # what a norm's weight is multiplied with: for the weight's gradient
    norms = 2 * (normalized + w.hidden + 4 * w.hidden / size)  # with what comes out, and the input in float32
    rotated, output = (w.heads + 2 * w.kv_heads) * w.head_dim, 2 * w.heads * w.head_dim  # per sample, and joined
    if architecture.get_text_config().model_type.startswith(QK_NORMS):
        norms += (w.heads + w.kv_heads) * w.head_dim * (4 / size + (0 if adapters else 1))
    block = norms + rotated + output + 4 * w.inner
    if isinstance(tuning, LoraTuning):
        block += 7 * tuning.rank  # what the low-rank halves of seven linear layers give
    share = float(config.model.gradient_checkpointing)
    held = (1 - share) * w.layers * block + (share * w.layers * w.hidden + block if share else 0)
    return float(config.train.tokens_per_pack / config.train.sequence_parallel * size * held)


def _head(
    config: RunConfig, architecture: Architecture, trained: bool, size: int, device: Device, supervised: float
) -> float:
    """Two blocks of logits, and where more of them stay: in the gradient of the head's weight where there is one."""
    text = architecture.get_text_config()
    logits = config.train.tokens_per_pack / config.train.sequence_parallel * supervised * text.vocab_size
    kept, gradient = 4 * min(KEPT, logits), text.vocab_size * text.hidden_size * size if trained else 0
    room = gradient if gradient >= kept else gradient + kept
    return float(2 * 4 * min(BLOCK[device], logits) + room)
