"""The least that a step can cost on this machine, and the loss that it must have.

python -m tools.benchmarks.floor SPEC.json

Floor: FLOPs of the supervised work, which are backbone forward and backward over real tokens, attention inside samples
(its causal half), and the head over supervised positions; by the rate of the machine's matrix product at the model's
own shapes, in the same run and precision. The optimizer, norms, rotary positions and soft-maxes are left out.

Loss: transformers, float32, one sample at a time, without padding or packing.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tools.benchmarks.probe import cpu_seconds

TRIES, PATIENCE = 5, 10.0
"""How often a product is tried, but for those that take long: CPU-seconds after which it is not tried again."""


def main(spec: dict[str, Any]) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(spec["model"])
    supervised = statistics.mean(spec["supervised"]) / 2  # of a pack
    shapes = list(products(config, spec["pack"], int(supervised)))
    found = {
        dtype: {"rate": rate(shapes, getattr(torch, dtype)), "flops": flops(config, spec)} for dtype in spec["dtypes"]
    }
    Path(spec["out"], "rank0.json").write_text(json.dumps({"floor": found, "loss": first_loss(spec)}))


def products(config: Any, tokens: int, supervised: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows, inputs and outputs of the linear layers, and how many of these the model has."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = width // config.num_attention_heads
    yield tokens, width, size * config.num_attention_heads, 2 * layers  # queries and output
    yield tokens, width, size * config.num_key_value_heads, 2 * layers
    yield tokens, width, inner, 2 * layers
    yield tokens, inner, width, layers
    yield supervised, width, config.vocab_size, 1


def rate(shapes: list[tuple[int, int, int, int]], dtype: torch.dtype) -> float:
    """FLOP per CPU-second of x @ w.T, dy @ w and dy.T @ x, at their best of several tries, weighted as in the model."""
    done = took = 0.0
    for rows, inputs, outputs, count in shapes:
        x, w = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        dy = torch.randn(rows, outputs).to(dtype)
        for call in (lambda x=x, w=w: x @ w.T, lambda dy=dy, w=w: dy @ w, lambda dy=dy, x=x: dy.T @ x):
            took += count * _best(call)
            done += count * 2.0 * rows * inputs * outputs
    return done / took


def _best(call: Any) -> float:
    took: list[float] = []
    while len(took) < TRIES and sum(took) < PATIENCE:
        took.append(_seconds(call))
    return min(took)


def _seconds(call: Any) -> float:
    before = cpu_seconds()
    call()
    return cpu_seconds() - before


def flops(config: Any, spec: dict[str, Any]) -> float:
    """Per token, over all steps."""
    from dist_sft.estimate.cost import model_cost

    head = 3 * 2.0 * config.hidden_size * config.vocab_size * sum(spec["supervised"])
    backbone = model_cost(config, trains_weights=True).flops(sum(spec["tokens"]), sum(spec["squares"]))
    return (head + backbone) / sum(spec["tokens"])


def first_loss(spec: dict[str, Any]) -> float:
    """Mean over the supervised tokens of the first step."""
    import pyarrow.parquet
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    rows = pyarrow.parquet.read_table(spec["rows"]).slice(0, spec["samples"]).to_pylist()
    total, count = 0.0, 0
    for row in rows:
        tokens, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        at = (labels != -100).nonzero()[:, 0]
        with torch.no_grad():
            logits = model(tokens[None], use_cache=False, logits_to_keep=at - 1).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits.double(), labels[at], reduction="sum"))
        count += len(at)
    return total / count


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
