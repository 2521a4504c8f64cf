"""model.neftune: its settings."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, NonNegativeFloat, Tag, model_validator
from pydantic_core import PydanticCustomError

from dist_sft.config.section import Fraction, Section
from dist_sft.core.curves import CurveShape


def _block(key: str) -> str:
    if not key.isdecimal() or key != str(int(key)):
        raise PydanticCustomError("block", "the number of a block, from 0")
    return key


Block = Annotated[str, AfterValidator(_block)]
"""A decoder block, as a key of a run file: keys are text."""


class Depth(Section):
    """model.neftune.layers: alpha as a function of depth, e.g. {shape: linear, first: 5, last: 0}."""

    shape: CurveShape = Field(description="constant: first everywhere; linear, cosine: from first to last")
    first: NonNegativeFloat = Field(description="alpha at block 0: the embeddings")
    last: NonNegativeFloat = Field(default=0.0, description="alpha at the last block")


class NoiseSchedule(Section):
    """model.neftune.schedule: alpha over the steps."""

    shape: CurveShape = Field(default="constant", description="linear, cosine: falls to end at the last step")
    warmup: NonNegativeFloat = Field(
        default=0.0, description="rises from 0: share of all steps if below 1, else a number of steps"
    )
    end: Fraction = Field(default=0.0, description="of linear and cosine: the part of alpha that is left at the end")


def _layers_kind(value: Any) -> str:
    numbers = isinstance(value, dict) and all(str(name).removeprefix("-").isdecimal() for name in value)
    return "map" if numbers else "depth"


class Neftune(Section):
    """model.neftune: noise on the embeddings (Jain et al., 2023), or on what later blocks read; none on padding.

    Each element has the variance alpha**2 / (3 L d), L the tokens of the sample, d the width of the model.
    """

    alpha: NonNegativeFloat | None = Field(
        default=None, description="strength on the embeddings: 5, unless layers is set; the paper has 5 to 15; 0: none"
    )
    layers: (
        Annotated[
            Annotated[dict[Block, NonNegativeFloat], Tag("map")] | Annotated[Depth, Tag("depth")],
            Discriminator(_layers_kind),
        ]
        | None
    ) = Field(
        default=None,
        description="in place of alpha: alpha at the inputs of these blocks, 0 the embeddings, e.g. {0: 5, 12: 2}; or "
        "a function of depth, e.g. {shape: linear, first: 5, last: 0}",
    )
    distribution: Literal["uniform", "gaussian", "symmetric"] = Field(
        default="uniform", description="all of one variance; symmetric: + or - with equal chance (Rademacher)"
    )
    where: Literal["all", "prompt", "answer"] = Field(
        default="all",
        description="tokens that get noise; answer: those with a loss weight, prompt: the others; each token has the "
        "strength that it has with all",
    )
    scale: Literal["sample", "row"] = Field(
        default="sample",
        description="L: tokens of the sample; row: of its whole pack with padding, as transformers' hook has it, to "
        "compare with old runs. With row, packing, ranks and pads change what is learned: alone among all settings",
    )
    schedule: NoiseSchedule = NoiseSchedule()

    @model_validator(mode="before")
    @classmethod
    def _default_alpha(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("layers") is None:
            return {"alpha": 5.0, **given}
        return given
