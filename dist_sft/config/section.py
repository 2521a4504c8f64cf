"""What all sections of a run file have in common."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

EXECUTION: JsonDict = {"execution": True}
"""Mark of a setting that changes only how fast, where, or how visibly a run goes."""

ADDED: JsonDict = {"added": True}
"""Mark of a setting that runs of before did not have: at its default no run remembers it, so that they go on."""

Role = Literal["system", "user", "assistant", "tool"]
Fraction = Annotated[float, Field(ge=0, le=1)]
HEAVIEST = 1e6
"""A loss weight is below: sums of larger ones are more than float32 can hold."""
LossWeight = Annotated[float, Field(ge=0, lt=HEAVIEST)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running average: 1 would never forget. Or a share that may be nothing, and never all."""
Share = Annotated[float, Field(gt=0, le=1)]


def matching(pattern: str, wanted: str) -> AfterValidator:
    """Text that matches as a whole; `wanted` ends the sentence "KEY is 'VALUE', not ..."."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise PydanticCustomError("text", "{wanted}", {"wanted": wanted})
        return text

    return AfterValidator(check)


RESERVED_KWARGS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""What a chat template is given by the rows and by us, and by nobody else."""


def _unreserved(kwargs: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(RESERVED_KWARGS & kwargs.keys()):
        wanted = f"a section without {', '.join(taken)}, which the rows and their use decide"
        raise PydanticCustomError("reserved", "{wanted}", {"wanted": wanted})
    return kwargs


TemplateKwargs = Annotated[dict[str, Any], AfterValidator(_unreserved)]
"""What a chat template sees beside the rows."""


class Section(BaseModel):
    """Frozen, and refuses unknown keys."""

    file: ClassVar[str] = "the file"
    """What a whole file of this kind is called in messages."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
