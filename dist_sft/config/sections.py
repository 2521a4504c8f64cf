"""Every setting of a run file, its type, its default and its meaning; those of noise are in `noise`, those of the
cluster and the data service in `cluster`, those of pods in `kubernetes`.

Settings marked with EXECUTION may change when a run is resumed: they cannot change what is learned. All others may not,
see `learned`.
"""

import math
import os
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from dist_sft.config.cluster import ClusterSection, ServiceSection
from dist_sft.config.kubernetes import KubernetesSection
from dist_sft.config.noise import Neftune
from dist_sft.config.section import (
    ADDED,
    EXECUTION,
    Decay,
    Fraction,
    LossWeight,
    Role,
    Section,
    Share,
    TemplateKwargs,
    matching,
)
from dist_sft.core.redact import redact_value


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


Part = Literal["messages", "prompt", "completion", "system", "tools", "reasoning", "text", "weight"]
PARTS: tuple[str, ...] = get_args(Part)
"""Of a row: what may stand on the left of `columns`."""


class Source(Section):
    """data.sources[i]: rows from one place."""

    path: str = Field(
        min_length=1,
        description="file, folder, archive of files, glob, fsspec URL, or hub:owner/name for a data set of the hub",
        json_schema_extra=EXECUTION,  # what counts is the content: a run remembers its fingerprint
    )
    format: Literal[
        "auto", "messages", "sharegpt", "glaive", "alpaca", "prompt_completion", "question_answer", "text"
    ] = Field(default="auto", description="of the rows; auto looks at each row's keys")
    columns: dict[Part, str] = Field(
        default={},
        description="which column of the files holds which part of a row, where auto does not know it, e.g. "
        "{prompt: query, completion: response, system: meta.system_prompt}; dots lead into objects",
        json_schema_extra=ADDED,
    )
    control_tokens: Literal["refuse", "parse", "text"] = Field(
        default="refuse",
        description="of rows whose text holds turns as this model's chat template writes them; parse: read them back, "
        "with proof; text: keep them as plain text, in which control tokens are spelled out in letters",
        json_schema_extra=ADDED,
    )
    split: str = Field(
        default="train", min_length=1, description="of a hub data set, or of a file or folder with several"
    )
    subset: str | None = Field(default=None, description="configuration of a hub data set, e.g. main of openai/gsm8k")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set")
    weight: NonNegativeFloat | None = Field(
        default=None,
        description="samples of this source, against the other sources' weights, 0 for one that data.schedule brings "
        "in; none: by number of rows",
    )
    token_share: Share | None = Field(
        default=None, description="of all tokens, e.g. 0.05 of replayed pre-training text; in place of weight"
    )
    max_epochs: PositiveFloat | None = Field(
        default=None, description="passes over its rows, after which the source ends; none: it repeats"
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _part_first(cls, columns: Any) -> Any:
        """Whoever writes the columns first is shown the line as it should be."""
        if isinstance(columns, dict):
            wrong = {str(part): str(column) for part, column in columns.items() if part not in PARTS}
            if wrong and set(wrong.values()) <= set(PARTS):
                turned = ", ".join(f"{column if part in wrong else part}: {part if part in wrong else column}"
                                   for part, column in columns.items())  # fmt: skip
                raise PydanticCustomError(
                    "columns", "the part comes first, then the column of the file: write columns: {{line}}",
                    {"line": turned},
                )  # fmt: skip
        return columns

    @property
    def shown(self) -> str:
        """Its path as messages say it: without secrets."""
        if self.path.startswith("hub:"):
            return f"{self.path}{f'/{self.subset}' if self.subset else ''} {self.split}"
        return redact_value(self.path)

    @property
    def amount(self) -> float | None:
        """Its share of tokens, else its weight; None: as many samples as it has rows."""
        return self.weight if self.token_share is None else self.token_share


class WeightChange(Section):
    """data.schedule[i]: other weights from a step on."""

    step: PositiveInt = Field(description="the first step with these weights, from 0")
    weights: tuple[NonNegativeFloat, ...] = Field(
        description="by source, in the order of data.sources; for a source with token_share: its share of tokens"
    )


class PacingSection(Section):
    """data.order.pacing: draw at random from the easiest rows, of which there are more and more."""

    start: Fraction = Field(default=0.2, description="share of the rows that is open at first")
    full_at: Share = Field(default=0.8, description="share of an epoch after which all rows are open")
    power: PositiveFloat = Field(default=1.0, description="1: grows evenly; above 1: slowly at first")


class OrderSection(Section):
    """data.order: of the rows within an epoch."""

    kind: Literal["shuffle", "sequential", "staged", "interleaved"] = Field(
        default="shuffle",
        description="staged: easy to hard; interleaved: easy to hard within each domain, domains mixed throughout",
    )
    by: str = Field(default="difficulty", min_length=1, description="column with a number, or a name out of stages")
    stages: tuple[str, ...] = Field(default=(), description="names in the column, easiest first")
    domain: str | None = Field(
        default=None, description="of interleaved: column that names a row's domain; none: its source"
    )
    pacing: PacingSection | None = None


class LossWeights(Section):
    """data.loss: which tokens are learned, and how much each counts."""

    roles: dict[Role, LossWeight] = Field(
        default={"assistant": 1.0}, description="weight by role; roles not named get 0"
    )
    turns: Literal["all", "last"] = Field(default="all", description="last: only messages after the last user message")
    reasoning: bool = Field(default=True, description="false: reasoning parts are context, not learned")
    empty_thought: bool = Field(
        default=False,
        description="true: an empty thought that the template writes before an answer is learned too",
        json_schema_extra=ADDED,
    )


class DataSection(Section):
    """data: which conversations, and how they become tokens."""

    sources: tuple[Source, ...] = Field(min_length=1)
    schedule: tuple[WeightChange, ...] = Field(default=(), description="changes of the sources' weights, by step")
    order: OrderSection = OrderSection()
    template: str = Field(default="auto", description="auto (the tokenizer's), chatml, llama3, roles, or a .jinja file")
    role_names: dict[str, Role] = Field(
        default={}, description="what a role is called in the files, e.g. {bot: assistant}"
    )
    template_kwargs: TemplateKwargs = Field(
        default={},
        description="what the chat template sees beside each row, e.g. {enable_thinking: false}; a row's own "
        "chat_template_kwargs come before these",
        json_schema_extra=ADDED,
    )
    reasoning_without_place: Literal["refuse", "inline", "drop"] = Field(
        default="refuse",
        description="of reasoning_content, where the chat template has no place for it; inline: as <think>...</think> "
        "before the answer",
        json_schema_extra=ADDED,
    )
    loss: LossWeights = LossWeights()
    context_length: PositiveInt = Field(default=4096, description="longest sample, tokens")
    overlong: Literal["drop", "truncate", "error"] = "drop"
    bad_rows: Literal["error", "drop"] = Field(
        default="error", description="of rows that cannot become a sample; drops are counted"
    )
    max_bad_share: Fraction = Field(
        default=0.1, description="with bad_rows=drop: stop when more than this share of rows is bad"
    )
    cache: str | None = Field(
        default_factory=lambda: os.environ.get("DIST_SFT_CACHE", "~/.cache/dist_sft"),
        description="folder of encoded samples and line indexes, shared by all runs of a node; null: none",
        json_schema_extra=EXECUTION,
    )
    cache_size: PositiveInt = Field(
        default=32 << 30,
        description="bytes of encoded samples, and as many of decoded row groups of Parquet files, trimmed when a run "
        "starts; what was used longest ago goes first",
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
