"""The head and the loss of one system, over a backbone that costs nothing: what loss_memory runs in each process.

python -m tools.benchmarks.loss_heads SPEC.json

All take the same hidden states [T, H] and head weights [V, H], both leaves that want a gradient, and labels [T]. The
model is transformers' Llama, its own forward and its own head, with a backbone that only hands over the hidden states,
so that each system comes in by its usual door.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.benchmarks.probe import cpu_seconds, memory, reset_peak

Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""model, tokens int64[T], labels int64[T] (-100: not learned) -> mean nll of the labels."""


def main(spec: dict[str, Any]) -> None:
    torch.set_num_threads(spec["threads"])
    loss = SYSTEMS[spec["system"]]
    tokens, labels, hidden, weight = inputs(spec)
    if spec["system"] == "exact":
        value, times, peak = exact(labels, hidden, weight), [0.0], 0
    else:
        model = headed(hidden, weight)
        small = headed(hidden[:200].detach().clone().requires_grad_(), weight[:1000].detach().clone())
        loss(small, tokens[:200] % 1000, torch.where(labels >= 0, labels % 1000, -100)[:200]).backward()  # warm
        del small
        times, peak, value = measured(lambda: loss(model, tokens, labels), model, spec["tries"])
        hidden, weight = model.model.hidden, model.lm_head.weight
    assert hidden.grad is not None and weight.grad is not None
    rows = torch.cat([labels[labels >= 0], torch.arange(0, len(weight), 97)])
    torch.save({"hidden": hidden.grad.double(), "weight": weight.grad[rows].double()}, spec["gradients"])
    size = hidden.grad.nbytes + weight.grad.nbytes
    result = {"loss": value, "cpu": times, "peak": peak, "gradients": size, "torch": torch.__version__}
    Path(spec["out"], "rank0.json").write_text(json.dumps(result | {"median": statistics.median(times)}))


def measured(call: Callable[[], Tensor], model: Any, tries: int) -> tuple[list[float], int, float]:
    """CPU-seconds of each try; most bytes in the first, over what was there before; the loss."""
    times, peak, value = [], 0, 0.0
    for attempt in range(tries):
        model.zero_grad(set_to_none=True)
        model.model.hidden.grad = None
        before, cpu = memory(), cpu_seconds()
        reset_peak()
        loss = call()
        loss.backward()
        times.append(cpu_seconds() - cpu)
        peak = peak if attempt else memory("VmHWM") - before
        value = float(loss)
        del loss
    return times, peak, value


def inputs(spec: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for all: logits of standard deviation 1, labels in runs as answers are."""
    dice, dtype = torch.Generator().manual_seed(0), getattr(torch, spec["dtype"])
    count, width, vocabulary = spec["tokens"], spec["hidden"], spec["vocabulary"]
    tokens = torch.randint(0, vocabulary, (count,), generator=dice)
    learned = (torch.arange(count) % 200) >= 200 * (1 - spec["supervised"])
    hidden = torch.randn(count, width, generator=dice).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=dice) * width**-0.5).to(dtype)
    return tokens, torch.where(learned, tokens, -100), hidden.requires_grad_(), weight.requires_grad_()


class Backbone(nn.Module):
    """Hands over the hidden states. It has an embedding, for transformers tells nobody the head of a model without."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden, self.embed_tokens = hidden, nn.Embedding(1, 1)

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=self.hidden[None])


def headed(hidden: Tensor, weight: Tensor) -> Any:
    """A LlamaForCausalLM over these hidden states with this head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, use_cache=False
    )
    model = LlamaForCausalLM(config)
    model.model = Backbone(hidden)
    model.lm_head.weight = nn.Parameter(weight.detach())
    model.vocab_size = model.config.vocab_size = len(weight)
    model.config.hidden_size = hidden.shape[1]
    return model.train()


def ours(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """dist-sft: PackedModel.token_scores on a pack of one sample."""
    import numpy as np

    from dist_sft.chat.conversation import EncodedSample
    from dist_sft.data.order import SampleId
    from dist_sft.data.pack import build_pack
    from dist_sft.evaluate.held_out import negative_log_likelihood
    from dist_sft.model.context import PackContext
    from dist_sft.model.head import attach_head
    from dist_sft.model.packed import PackedModel

    weights = (labels >= 0).numpy().astype(np.float32)
    pack = build_pack([SampleId(0, 0, 0)], [EncodedSample(tokens.numpy().astype(np.int32), weights)])
    packed = PackedModel(model, PackContext(), 0, torch.device("cpu"))
    attach_head(model, packed.context)
    scores, weight = packed.token_scores(model, pack, 0)
    return (negative_log_likelihood(scores) * weight).sum() / weight.sum()


def transformers(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Its own loss on all logits."""
    return model(input_ids=tokens[None], labels=labels[None]).loss


def trl(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """TRL's fused head with the outputs that SFTTrainer asks for; without Triton in plain torch."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    output = model(input_ids=tokens[None], labels=labels[None], fused_lm_head=True)
    del model.forward  # the class's own again
    return -output.log_probs.sum() / output.label_mask.sum()


def torch_chunked(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """torch's linear_cross_entropy, in the chunks that it chooses itself."""
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    hidden, weight = model.model.hidden[:-1], model.lm_head.weight
    return nn.functional.linear_cross_entropy(hidden, weight, labels[1:], ignore_index=-100, options=options)


def torch_chosen(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """The same, on the supervised positions only."""
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    at = (labels >= 0).nonzero()[:, 0]
    options = LinearCrossEntropyOptions()
    return nn.functional.linear_cross_entropy(
        model.model.hidden[at - 1], model.lm_head.weight, labels[at], options=options
    )


def unsloth(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Unsloth's chunked loss for CPU, as its loader puts it into a model and its trainer switches it on."""
    import os

    os.environ["UNSLOTH_FORCE_CPU"] = "1"
    import unsloth  # noqa: F401  (which says that the CPU is meant)
    from unsloth_zoo.cpu.ops import patch_chunked_causal_lm_loss

    assert patch_chunked_causal_lm_loss(model), "Unsloth does not know this head"
    model._unsloth_cpu_chunked_ce_active = True
    return model(input_ids=tokens[None], labels=labels[None]).loss


def exact(labels: Tensor, hidden: Tensor, weight: Tensor) -> float:
    """float64, a few positions at a time, gradients by hand."""
    at = (labels >= 0).nonzero()[:, 0]
    states, matrix, total = hidden.detach().double(), weight.detach().double(), 0.0
    d_states, d_matrix = torch.zeros_like(states), torch.zeros_like(matrix)
    for part in at.split(64):
        logits = states[part - 1] @ matrix.T
        total += float(nn.functional.cross_entropy(logits, labels[part], reduction="sum"))
        slope = torch.softmax(logits, -1)
        slope[torch.arange(len(part)), labels[part]] -= 1
        slope /= len(at)
        d_states[part - 1] = slope @ matrix
        d_matrix += slope.T @ states[part - 1]
    hidden.grad, weight.grad = d_states.to(hidden.dtype), d_matrix.to(weight.dtype)
    return total / len(at)


SYSTEMS: dict[str, Any] = {
    "ours": ours,
    "transformers": transformers,
    "trl": trl,
    "torch": torch_chunked,
    "torch-supervised": torch_chosen,
    "unsloth": unsloth,
    "exact": exact,
}

if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
