"""Every setting of a run file, its type, its default and its meaning; those of the data are in `data`, of
noise in `noise`, of the cluster and the data service in `cluster`, of pods in `kubernetes`.

Settings marked with EXECUTION may change when a run is resumed: they cannot change what is learned. All others may not,
see `learned`.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dist_sft.config.cluster import ClusterSection, ServiceSection
from dist_sft.config.data import DataSection, Source
from dist_sft.config.kubernetes import KubernetesSection
from dist_sft.config.noise import Neftune
from dist_sft.config.section import (
    ADDED,
    EXECUTION,
    Decay,
    Section,
    Share,
    matching,
)


class RunSection(Section):
    """run: which run this is."""

    name: str = Field(default="sft", min_length=1, description="name in W&B and in logs", json_schema_extra=EXECUTION)
    dir: str = Field(
        default="runs/sft",
        min_length=1,
        description="folder that gets checkpoints, logs, the ledger",
        json_schema_extra=EXECUTION,
    )
    seed: int = Field(default=0, description="of the order, the noise and dropout")


class FullTuning(Section):
    """model.tuning: every parameter is trained."""

    kind: Literal["full"] = "full"


class LoraTuning(Section):
    """model.tuning: low-rank adapters (Hu et al., 2021) are trained, the base model is frozen."""

    kind: Literal["lora"]
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    scaling: Literal["alpha/rank", "rslora"] = Field(
        default="alpha/rank", description="what B A is multiplied by; rslora: alpha / sqrt(rank) (Kalajdzievski, 2023)"
    )
    init: Literal["default", "pissa"] = Field(
        default="default",
        description="where A and B start; pissa: at the principal part of each weight (Meng et al., 2024)",
    )
    dora: bool = Field(default=False, description="learn the norm of each output apart (Liu et al., 2024)")
    b_rate_ratio: PositiveFloat = Field(
        default=1.0, description="learning rate of B over that of A; LoRA+ takes 16 (Hayou et al., 2024)"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | tuple[str, ...] = Field(
        default="all-linear", description="module names, or all-linear (all but the head)"
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(), description="modules trained whole beside the adapters, e.g. [lm_head, embed_tokens]"
    )

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (self.rank if self.scaling == "alpha/rank" else self.rank**0.5)


class ModelSection(Section):
    """model: what is tuned, and how it is computed."""

    path: str = Field(min_length=1, description="hub id or folder", json_schema_extra=EXECUTION)
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["auto", "segments", "varlen", "flash", "flex"] = Field(
        default="auto",
        description="what computes attention inside samples; auto: flash where it is installed, varlen on other GPUs, "
        "segments elsewhere and with dropout",
        json_schema_extra=EXECUTION,
    )
    attention_dropout: Decay | None = Field(
        default=None, description="share of the attention weights that is dropped; none: what config.json says"
    )
    tuning: Annotated[FullTuning | LoraTuning, Field(discriminator="kind")] = FullTuning()
    neftune: Neftune | None = None
    residual_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="of what attention and MLP add to the residual stream: none at the bottom block, this at the last, "
        "linear between (LIMA, Zhou et al., 2023: 0.3; 0.2 for small models)",
    )
    gradient_checkpointing: bool | Share = Field(
        default=False,
        description="recompute activations: less memory, up to 1/3 more time; a number: in this share of the blocks",
        json_schema_extra=EXECUTION,
    )
    compile: bool = Field(
        default=False,
        description="fuse the blocks with torch.compile, which takes a minute at each start",
        json_schema_extra=EXECUTION,
    )


class Optimizer(Section):
    """train.optimizer: AdamW (Loshchilov & Hutter, 2019) or SGD, as torch computes them."""

    name: Literal["adamw", "sgd", "adamw8bit"] = Field(
        default="adamw",
        description="adamw8bit: moments in 8 bits (Dettmers et al., 2022), by bitsandbytes, on GPUs; their rounding "
        "depends on how parameters are sharded, so on the number of ranks",
    )
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    decay: Literal["matrices", "all"] = Field(
        default="matrices", description="what weight_decay is for; matrices: not norms and biases"
    )
    decay_embeddings: bool = Field(
        default=True, description="false: no decay of embeddings, nor of a head that shares their weights"
    )
    momentum: Decay = Field(default=0.0, description="of sgd")


class LossSection(Section):
    """train.loss: of a supervised token; data.loss says which tokens count, and how much."""

    kind: Literal["nll", "dft"] = Field(
        default="nll", description="nll: -log p; dft: p, held constant, times that (Wu et al., 2025)"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the target's weight that is spread over the vocabulary"
    )
    z_loss: NonNegativeFloat = Field(
        default=0.0, description="times the squared log of the sum of exp(logits); PaLM: 1e-4"
    )


class TrainSection(Section):
    """train: the steps."""

    samples_per_step: PositiveInt = Field(default=64, description="conversations per optimizer step, over all ranks")
    tokens_per_pack: PositiveInt = Field(
        default=8192, description="most tokens in one forward pass of a rank", json_schema_extra=EXECUTION
    )
    packing: bool = Field(default=True, description="false: one sample per forward pass", json_schema_extra=EXECUTION)
    micro_steps: PositiveInt = Field(
        default=1, description="fewest forward passes per step and rank", json_schema_extra=EXECUTION
    )
    pad_to_multiple_of: PositiveInt = Field(
        default=1, description="tokens; for kernels compiled for few shapes", json_schema_extra=EXECUTION
    )
    sequence_parallel: PositiveInt = Field(
        default=1,
        description="ranks that share one pack, each with a part of its tokens and of the heads; for packs too long "
        "for one GPU",
        json_schema_extra=EXECUTION,
    )
    epochs: PositiveFloat | None = Field(default=None, description="passes over the data; this or steps")
    steps: PositiveInt | None = Field(default=None, description="optimizer steps; this or epochs")
    preset: Literal["none", "full", "lora", "distill"] = Field(
        default="none",
        description="fills in learning_rate, schedule, warmup, weight_decay where the run file does not set them, from "
        "a published recipe: see config/presets.py",
        json_schema_extra=EXECUTION,  # what counts is the values: they are in the resolved config, and compared
    )
    loss: LossSection = LossSection()
    optimizer: Optimizer = Optimizer()
    learning_rate: PositiveFloat = 1e-5
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: NonNegativeFloat = Field(default=0.03, description="share of all steps if below 1, else a number of steps")
    decay: NonNegativeFloat = Field(
        default=0.2, description="of wsd: share of all steps (or number of steps) that decay at the end"
    )
    min_learning_rate: NonNegativeFloat = Field(default=0.0, description="where the decay ends")
    clip: NonNegativeFloat = Field(default=1.0, description="largest norm of the whole gradient; 0: no clipping")

    @property
    def pack_multiple(self) -> int:
        """Tokens that the length of each pack is a multiple of: every neighbour gets as many."""
        return math.lcm(self.pad_to_multiple_of, self.sequence_parallel)


class EvalSource(Source):
    """eval.sources[i]: held-out rows from one place."""

    name: str | None = Field(
        default=None, min_length=1, description="what its losses are told by; none: its path", json_schema_extra=ADDED
    )

    @property
    def title(self) -> str:
        """What its losses are told by."""
        return self.name or self.shown


HELD_OUT = "held_out"
"""Name of the source that eval.share makes of training rows."""


class EvalSection(Section):
    """eval: loss on held-out rows, and early stopping."""

    source: EvalSource | None = Field(default=None, description="a path, or a source as in data.sources")
    sources: tuple[EvalSource, ...] = Field(
        default=(),
        description="several in place of source, each with a name that its losses are told by, e.g. "
        "[{name: math, path: math.jsonl}, {name: code, path: code.jsonl}]",
        json_schema_extra=ADDED,
    )
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="of the questions in data.sources: all rows of these are held out, never trained, and are a source "
        "named held_out; a question is a row's first user message, or how its document begins, and chosen by its hash",
        json_schema_extra=ADDED,
    )
    decides: str | None = Field(
        default=None,
        min_length=1,
        description="name of the source whose loss early stopping and checkpoint.keep_best follow; none: the mean of "
        "all, in which each supervised token counts as much",
        json_schema_extra=ADDED,
    )
    every: PositiveInt = Field(default=100, description="steps")
    samples: PositiveInt | None = Field(default=None, description="at most this many rows of each source")
    patience: NonNegativeInt | None = Field(
        default=None, description="stop after this many evaluations without improvement"
    )
    min_delta: NonNegativeFloat = Field(default=0.0, description="nats per token that count as improvement")

    @property
    def given(self) -> dict[tuple[str | int, ...], EvalSource]:
        """The sources that are files of their own, by their place in this section."""
        listed: dict[tuple[str | int, ...], EvalSource] = {
            ("sources", i): source for i, source in enumerate(self.sources)
        }
        return {("source",): self.source} if self.source else listed

    @property
    def names(self) -> tuple[str, ...]:
        """What losses are told by: of each source that is given, then of the share."""
        return (*(source.title for source in self.given.values()), *([HELD_OUT] if self.share else []))


Url = Annotated[
    str,
    matching(
        r"[a-z][a-z0-9+.-]*://[^@\s*?\[\]]+",
        "a URL such as s3://bucket/run: no user or password, no spaces, none of *?[]",
    ),
]


class CheckpointSection(Section):
    """checkpoint: what survives."""

    url: Url | None = Field(
        default=None,
        description="keep checkpoints there, not in run.dir: a folder of their own in an object store that "
        "fsspec knows, e.g. s3://bucket/run (needs s3fs); credentials are the library's own, by environment",
        json_schema_extra=EXECUTION,
    )
    every: PositiveInt = Field(
        default=100, description="steps; the last step is always saved", json_schema_extra=EXECUTION
    )
    keep: PositiveInt = Field(default=2, description="newest checkpoints that are kept", json_schema_extra=EXECUTION)
    keep_best: NonNegativeInt = Field(
        default=0,
        description="besides, those with the lowest loss on held-out rows; of steps that are evaluated",
        json_schema_extra=EXECUTION,
    )
    behind: bool = Field(
        default=True,
        description="write while training goes on, from a copy in host memory; false: training waits",
        json_schema_extra=EXECUTION,
    )


class WandbSection(Section):
    """tracking.wandb."""

    project: str = Field(default="dist-sft", json_schema_extra=EXECUTION)
    entity: str | None = Field(default=None, json_schema_extra=EXECUTION)
    group: str | None = Field(default=None, json_schema_extra=EXECUTION)
    tags: tuple[str, ...] = Field(default=(), json_schema_extra=EXECUTION)
    mode: Literal["online", "offline", "disabled"] = Field(default="online", json_schema_extra=EXECUTION)


class TrackingSection(Section):
    """tracking: where figures go besides the console and metrics.jsonl."""

    wandb: WandbSection | None = Field(default=None, json_schema_extra=EXECUTION)
    log_every: PositiveInt = Field(default=1, description="steps per console line", json_schema_extra=EXECUTION)
    group_by: str | None = Field(
        default=None,
        min_length=1,
        description="column of the rows, e.g. tag: losses and supervised tokens by its values, besides those by source",
        json_schema_extra=EXECUTION,
    )


class RunSections(Section):
    """The sections of a run file, each right by itself; `run_config.RunConfig` is what they are together."""

    run: RunSection = RunSection()
    model: ModelSection
    data: DataSection
    train: TrainSection
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()
    service: ServiceSection = ServiceSection()
    deepspeed: str | dict[str, Any] = Field(
        default="ds_configs/zero3.json", description="a DeepSpeed JSON, or its content", json_schema_extra=EXECUTION
    )
    tracking: TrackingSection = TrackingSection()
    kubernetes: KubernetesSection | None = Field(
        default=None, description="of dist-sft rayjob", json_schema_extra=EXECUTION
    )
