"""What all sections of a run file have in common."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

EXECUTION: JsonDict = {"execution": True}
"""Mark of a setting that changes only how fast, where, or how visibly a run goes."""

ADDED: JsonDict = {"added": True}
"""Mark of a setting that runs of before did not have: at its default no run remembers it, so that they go on."""

Role = Literal["system", "user", "assistant", "tool"]
Fraction = Annotated[float, Field(ge=0, le=1)]
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


class Section(BaseModel):
    """Frozen, and refuses unknown keys."""

    file: ClassVar[str] = "the file"
    """What a whole file of this kind is called in messages."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
