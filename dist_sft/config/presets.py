"""train.preset: the published values of a recipe, for what a run file leaves open.

full     supervised fine-tuning of all weights: Tülu 3 8B (Lambert et al., 2024; allenai/open-instruct docs/tulu3.md):
         5e-6, linear decay, 3 % warm-up, no weight decay, at 128 samples per step. Larger models: 2e-6 (their 70B).
lora     the same with ten times the rate, which is where LoRA's optimum lies whatever its rank (LoRA Without Regret,
         Schulman et al., Thinking Machines, 2025).
distill  long answers of a reasoning model: OpenThinker 7B and 32B (OpenThoughts, Guha et al., 2025; the models' cards):
         1e-5, cosine, 10 % warm-up, no weight decay, at 96 and more samples per step. s1 (Muennighoff et al., 2025,
         appendix D) has the same rate and decay. With LoRA: ten times the rate, as above.
"""

from typing import Any

from dist_sft.config.document import Document, Path

LORA_FACTOR = 10

_FULL: dict[Path, Any] = {
    ("train", "learning_rate"): 5e-6,
    ("train", "schedule"): "linear",
    ("train", "warmup"): 0.03,
    ("train", "optimizer", "weight_decay"): 0.0,
}
_DISTILL: dict[Path, Any] = {
    ("train", "learning_rate"): 1e-5,
    ("train", "schedule"): "cosine",
    ("train", "warmup"): 0.1,
    ("train", "optimizer", "weight_decay"): 0.0,
}
PRESETS = {"full": _FULL, "lora": _FULL, "distill": _DISTILL}
SOURCES = {
    "full": "Tülu 3 8B (Lambert et al., 2024), at 128 samples per step",
    "lora": "Tülu 3 8B (Lambert et al., 2024) with ten times its rate (LoRA Without Regret, Schulman et al., 2025)",
    "distill": "OpenThinker 7B and 32B (OpenThoughts, Guha et al., 2025), at 96 and more samples per step",
}
"""Where the values of each preset are from, in short."""


def apply_preset(document: Document) -> Document:
    """A document in which what train.preset fills in stands where nothing stood, placed at train.preset.

    What is no right run file passes unchanged: validation says better what is wrong with it.
    """
    name = _at(document.value, ("train", "preset"))
    if not isinstance(name, str) or name not in PRESETS:
        return document
    lora = _at(document.value, ("model", "tuning", "kind")) == "lora"
    value, locations = document.value, dict(document.locations)
    for path, default in PRESETS[name].items():
        filled = default * LORA_FACTOR if path[-1] == "learning_rate" and (lora or name == "lora") else default
        value, new = _filled(value, path, filled)
        if new:
            locations[path] = document.where(("train", "preset"))
    return Document(value, locations)


def _filled(value: Any, path: Path, default: Any) -> tuple[Any, bool]:
    """A copy of value with default at path, and True; or value itself where something stands there, or on the way."""
    head, rest = path[0], path[1:]
    if not isinstance(value, dict) or (not rest and head in value):
        return value, False
    inner, new = _filled(value.get(str(head), {}), rest, default) if rest else (default, True)
    return ({**value, str(head): inner}, True) if new else (value, False)


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value
