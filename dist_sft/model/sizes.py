"""How much of the logits a step holds at once: for `model.scores`, which computes them, and for estimates."""

BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits of a block: enough to keep the cores busy, and little beside what else a step holds."""
KEPT = 1 << 25
"""Logits, or exponentials of them, that are kept for the backward pass even where no gradient of a weight lends its
memory: 128 MiB."""
