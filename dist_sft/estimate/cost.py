"""What a token costs: for balancing packs, and for model FLOPs utilisation.

Kaplan et al., 2020, section 2.1, without the embedding: a forward pass takes 2 * P FLOPs per token for P weights in
matrices, plus 2 * layers * width per token and per token attended to (q k^T and a v); half of the square is causal.
"""

from dataclasses import dataclass

from dist_sft.model.architecture import Architecture, Values
from dist_sft.model.sizes import head_size

BYTES = {"bfloat16": 2, "float32": 4}
"""Of a number, by its dtype."""

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0}
"""Dense bf16 peak of GPUs by a part of their name, from the vendor's data sheets."""


GPU_GIB = {"H100": 80, "H200": 141, "H800": 80, "B200": 180, "A100-40": 40, "A100": 80, "A800": 80, "L40S": 48}
"""Memory of GPUs by a part of their name, GiB, from the vendor's data sheets."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes of a dense decoder, as config.json gives them or leaves them to be understood. inner: of the MLP."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int

    @classmethod
    def of(cls, config: Architecture) -> "Widths":
        text = config.get_text_config()
        hidden, heads = text.hidden_size, text.num_attention_heads
        return cls(
            hidden,
            text.num_hidden_layers,
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            head_size(text),
            _inner(text),
        )


def _inner(text: Values) -> int:
    """Of the MLP; on average, where each block has its own."""
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return round(sum(inner) / len(inner)) if isinstance(inner, list | tuple) else inner


@dataclass(frozen=True, slots=True)
class ModelCost:
    """weights: in the matrices that every token goes through; attention: layers * heads * head size.

    trains_weights: False for adapters, whose own cost is left out.
    """

    weights: float
    attention: float
    trains_weights: bool

    @property
    def quadratic(self) -> float:
        """A sample of L tokens costs as much as L + quadratic * L**2 tokens without attention."""
        return self.attention / self.weights

    def flops(self, tokens: float, squares: float) -> float:
        """Forward and backward of samples with these sums of lengths and of squared lengths.

        A backward pass costs a forward pass for the gradients of activations, and one for those of trained weights.
        """
        passes = 3 if self.trains_weights else 2
        return 2 * (passes * self.weights * tokens + 3 * self.attention * squares)


def model_cost(config: Architecture, trains_weights: bool) -> ModelCost:
    """Estimate from the architecture of a dense model; no weights are read."""
    w = Widths.of(config)
    attention = w.hidden * w.head_dim * (2 * w.heads + 2 * w.kv_heads)
    weights = w.layers * (attention + 3 * w.hidden * w.inner)
    return ModelCost(float(weights), float(w.layers * w.heads * w.head_dim), trains_weights)


def peak_flops(device_name: str) -> float | None:
    """bf16 FLOP/s of a GPU, or None where it is not known."""
    return next((tflops * 1e12 for name, tflops in PEAK_TFLOPS.items() if name in device_name), None)


def gpu_memory(device_name: str) -> float | None:
    """Bytes of a GPU, or None where it is not known."""
    return next((float(gib << 30) for name, gib in GPU_GIB.items() if name in device_name), None)
