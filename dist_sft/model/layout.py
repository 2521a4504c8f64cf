"""How transformers lays a model out, as a value: names and shapes, no weights, no torch."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Layer(NamedTuple):
    """A layer that can have an adapter: text reaches it.

    into, out  sizes of what goes in and comes out
    head       it gives the logits
    usual      all-linear means it, see `model.meta.layers_of`
    """

    name: str
    kind: Literal["linear", "embedding"]
    into: int
    out: int
    head: bool
    usual: bool


@dataclass(frozen=True)
class Layout:
    """A model without weights.

    shapes      of each tensor of the state dict, by name
    tied        names in it that are another's weight, and that one
    converted   whether files may name weights otherwise, or hold them in other pieces
    positions   how many there are, where the model looks them up in a table; None: it computes them
    experts     whether it has any
    parameters  numbers in each, by name
    same        other names of parameters, and the one above
    layers      in order
    beside      names of parameters that text never reaches, see `model.text_path`
    beside_parts  the outermost parts of the model that hold these, with their numbers of parameters
    """

    shapes: dict[str, list[int]]
    tied: dict[str, str]
    converted: bool
    positions: int | None
    experts: bool
    parameters: dict[str, int]
    same: dict[str, str]
    layers: tuple[Layer, ...]
    beside: frozenset[str]
    beside_parts: dict[str, int]

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Layout":
        """From JSON values."""
        layers = tuple(Layer(*layer) for layer in said["layers"])
        return cls(**said | {"layers": layers, "beside": frozenset(said["beside"])})

    @property
    def size(self) -> int:
        """Parameters of the model."""
        return sum(self.parameters.values())
