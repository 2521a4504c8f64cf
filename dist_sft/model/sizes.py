"""Sizes that what computes and what estimates have in common. Imports no torch."""

from typing import Any

BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits of a block: enough to keep the cores busy, and little beside what else a step holds."""
KEPT = 1 << 25
"""Logits, or exponentials of them, that are kept for the backward pass even where no gradient of a weight lends its
memory: 128 MiB."""


def head_size(text: Any) -> int:
    """Of an attention head; of most of them, where layers differ (Gemma 4's config then refuses to tell). text: Values,
    or transformers' own."""
    try:
        size = getattr(text, "head_dim", None)
    except Exception:  # noqa: BLE001  # transformers' own, which is no AttributeError
        size = vars(text).get("head_dim")
    return int(size or text.hidden_size // (getattr(text, "num_attention_heads", None) or 1))
