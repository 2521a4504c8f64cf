"""What all sections of a run file have in common."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

EXECUTION: JsonDict = {"execution": True}
"""Mark of a setting that changes only how fast, where, or how visibly a run goes."""

Role = Literal["system", "user", "assistant", "tool"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running average: 1 would never forget. Or a share that may be nothing, and never all."""
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Frozen, and refuses unknown keys."""

    file: ClassVar[str] = "the file"
    """What a whole file of this kind is called in messages."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
