"""One thing that was proved, or was found not to hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from dist_sft.core.errors import SftError


@dataclass(frozen=True, slots=True)
class Proof:
    """name: what is claimed; figure: what was measured, at most `limit` if it holds; detail: on what, and how.

    holds  None: it could not be tried here, and detail says why
    """

    name: str
    holds: bool | None
    figure: float | None = None
    limit: float | None = None
    detail: str = ""
    fix: str = ""

    @classmethod
    def measured(cls, name: str, figure: float, limit: float, detail: str = "", fix: str = "") -> "Proof":
        """It holds if the figure is at most the limit; not if it is no number."""
        return cls(name, bool(figure <= limit), float(figure), limit, detail, fix)

    @classmethod
    def refuted(cls, name: str, error: SftError) -> "Proof":
        """It does not hold, as an error says."""
        place = f"{error.where}: " if error.where else ""
        return cls(name, False, detail=f"{place}{error.what}", fix=error.fix)


def refuse(proofs: Sequence[Proof]) -> None:
    """Raise SftError for the first that does not hold."""
    for proof in proofs:
        if proof.holds is False:
            figures = "" if proof.figure is None else f" ({proof.figure:.2g}, at most {proof.limit:.2g})"
            raise SftError(
                f"this does not hold: {proof.name}{figures}{': ' if proof.detail else ''}{proof.detail}", fix=proof.fix
            )
