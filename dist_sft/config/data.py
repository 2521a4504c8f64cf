"""data: where rows come from, in which order, and what of them is learned."""

import os
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from dist_sft.config.section import (
    ADDED,
    EXECUTION,
    Fraction,
    LossWeight,
    Role,
    Section,
    Share,
    TemplateKwargs,
)
from dist_sft.core.redact import redact_value

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

    @property
    def cache_folder(self) -> Path | None:
        """`cache` as an absolute path; None where nothing is kept."""
        return Path(self.cache).expanduser().absolute() if self.cache else None
