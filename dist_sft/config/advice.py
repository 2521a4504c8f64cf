"""Settings that are allowed, and seldom meant."""

from dist_sft.config.run_config import RunConfig

RATES = {"full": (1e-7, 1e-4), "lora": (1e-5, 2e-3)}
"""Learning rates of AdamW that published fine-tuning uses, by kind of tuning, with room at both ends.

full: from 2e-7 (late stages of 70B models and larger) to 1e-4 (DeepSeek-R1-Distill-Qwen-1.5B); 1e-6 to 2e-5 is usual.
lora: about ten times as much (LoRA Without Regret, Schulman et al., 2025); 1e-4 to 5e-4 is usual.
"""


def warnings(config: RunConfig) -> list[str]:
    """What a user should look at again before a run, a sentence each; nothing here is an error."""
    return [*_learning_rate(config), *_noise(config), *_patience(config), *template_settings(config)]


def _learning_rate(config: RunConfig) -> list[str]:
    """SGD has other rates: no advice."""
    rate, kind = config.train.learning_rate, config.model.tuning.kind
    low, high = RATES.get(kind, (0.0, float("inf")))
    if low <= rate <= high or config.train.optimizer.name == "sgd":
        return []
    side = "above" if rate > high else "below"
    hint = "for a full tuning, not for adapters" if kind == "lora" and rate < low else "seldom right"
    if kind == "full" and rate > high:
        hint = "for adapters, or for a model that knows nothing yet"
    return [
        f"train.learning_rate is {rate:g}, {side} what is usual with model.tuning.kind={kind} ({low:g} to {high:g}): "
        f"{hint}; train.preset={kind} fills in a published one"
    ]


def template_settings(config: RunConfig) -> list[str]:
    """What inference must give the template, since an export does not hold it."""
    if not (settings := config.data.template_kwargs):
        return []
    given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return [f"data.template_kwargs are not part of an export: at inference, call apply_chat_template(..., {given})"]


def _patience(config: RunConfig) -> list[str]:
    hang, stall = config.cluster.hang, config.service.stall
    if hang > 3 * stall:
        return []
    return [
        f"cluster.hang is {hang:g} and service.stall is {stall:g}: ranks would be taken for stuck before a frozen "
        f"member of the data service is replaced; set service.stall to less than {hang / 3:g}"
    ]


def _noise(config: RunConfig) -> list[str]:
    if config.model.neftune is None or config.model.neftune.scale != "row":
        return []
    return [
        "model.neftune.scale is row: the noise, and so what is learned, depends on packing and on the number of ranks; "
        "leave it at sample unless an old run is to be reproduced"
    ]
