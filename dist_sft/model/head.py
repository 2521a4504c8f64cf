"""Put scores in the place of a model's logits: its own head, on the positions that are asked for, in blocks.

The model's code calls its head as ever; so ZeRO-3 gathers the head's weights, and nothing between the last layer and
the head is left out. What a model does to its logits afterwards is taken over, for scores are no logits.
"""

from typing import Any

from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from dist_sft.core.errors import ModelError
from dist_sft.model.context import PackContext
from dist_sft.model.scores import LogitTransform, token_scores


def attach_head(model: Any, pack: PackContext) -> None:
    """Make a model's head answer what `pack.asked` asks. Raises ModelError for a head that is not a linear layer."""
    head = _active(model.get_output_embeddings())
    if not isinstance(head, nn.Linear | LoraLinear):
        raise ModelError(
            f"its head is a {type(head).__name__}, not a linear layer", where=type(model).__name__,
            fix="choose a model with a linear lm_head",
        )  # fmt: skip
    if getattr(head, "lora_variant", None):
        raise ModelError(
            "DoRA cannot sit on the head, whose outputs are never held at once", where="model.tuning.targets",
            fix="leave lm_head out of model.tuning.targets, or set model.tuning.dora=false",
        )  # fmt: skip
    shape, logits = _take_transform(model), head.forward
    _let_zero3_gather(head)

    def forward(hidden: Tensor) -> Tensor:
        """[1, T, H] -> scores float32[1, P, 3], or logits [1, P, V] where there are no targets."""
        asked = pack.asked
        hidden = hidden[:, asked.at]
        if asked.targets is None:
            return shape(logits(hidden))
        factors, bias = _factors(head, hidden[0])
        return token_scores(factors, bias, asked.targets, shape, asked.mean)[None]

    head.forward = forward  # type: ignore[assignment]  # hooks of modules stay where they are


def _active(head: Any) -> Any:
    return head.modules_to_save[head.active_adapter] if hasattr(head, "modules_to_save") else head


def _factors(head: Any, hidden: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """Pairs whose products add up to the logits, the head's own and one for each adapter on it; and the bias."""
    if not hasattr(head, "lora_A"):
        return [(hidden, head.weight)], head.bias
    factors = [(hidden, head.base_layer.weight)]
    for name in head.active_adapters:
        scale, up, low = head.scaling[name], head.lora_B[name], head.lora_A[name](hidden)
        if isinstance(low, tuple):  # PiSSA: less the product that it started with
            factors += [(low[0] * scale, up.weight), (low[1] * -scale, up.start)]
        else:
            factors.append((low * scale, up.weight))
    return factors, head.base_layer.bias


def _let_zero3_gather(head: Any) -> None:
    """The weights of an adapted head belong to modules inside of it, of which only some are called."""
    if not isinstance(head, LoraLinear):
        return
    import deepspeed

    for weight in (head.base_layer.weight, *(head.lora_B[name].weight for name in head.active_adapters)):
        if hasattr(weight, "ds_id"):
            deepspeed.zero.register_external_parameter(head, weight)


def _take_transform(model: Any) -> LogitTransform:
    """What the model's code would do to its logits, which is switched off there."""
    inner = getattr(model, "get_base_model", lambda: model)()
    text = inner.config.get_text_config()
    cap, scale = getattr(text, "final_logit_softcapping", None), 1.0
    if cap is not None:  # Gemma 2 and later
        vars(text)["final_logit_softcapping"] = None  # Gemma 3n's config refuses it
    if getattr(text, "logits_scaling", None) is not None:  # Granite
        scale = 1 / text.logits_scaling
        try:
            text.logits_scaling = 1.0
        except AttributeError as error:  # MiniCPM 3 computes it of its width
            raise ModelError(
                "its logits are scaled by a figure that follows from its width, which cannot be taken over",
                where=type(inner).__name__,
                fix="choose another model",
            ) from error
    if getattr(inner, "logit_scale", None) is not None:  # Cohere
        scale, inner.logit_scale = float(inner.logit_scale), 1.0
    return LogitTransform(scale, cap)
