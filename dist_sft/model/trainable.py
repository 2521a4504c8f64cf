"""Models that cannot be trained, or not as asked, said before anything runs. No weight is read.

config.json, its layout, its trial, the tokenizer ─> ModelError, or notes for the user
"""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.core.errors import ModelError
from dist_sft.model.architecture import Architecture
from dist_sft.model.supported import refuse_mixture

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODALITY = r"image|audio|video|vision|soft_token|modality"
"""In the name of a token that stands for something else than text: text never holds it."""


def refuse_architecture(config: Architecture, where: str) -> None:
    """Raise ModelError for a base whose weights are quantised, and for an encoder with a decoder."""
    if method := _quantised(config):
        raise ModelError(
            f"its weights are quantised ({method}), and training needs them whole",
            where=f"{where}/config.json",
            fix="set model.path to the model that it was made from, or save it dequantised: AutoModelForCausalLM"
            ".from_pretrained(path).dequantize().save_pretrained(folder); adapters need no quantised base here",
        )
    text = config.get_text_config()
    kinds = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "layers_block_type", None) or ())}
    if others := sorted(kind for kind in kinds if "attention" not in kind.replace("linear_attention", "")):
        raise ModelError(
            f"layers of kind {', '.join(others)} carry a state from token to token, "
            "and so from one sample of a pack to the next",
            where=f"{where}/config.json",
            fix="choose a model whose layers mix tokens by attention alone",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{config.model_type} is an encoder with a decoder: half of it would be left out",
            where=f"{where}/config.json",
            fix="choose a decoder-only model",
        )


def refuse_experts(config: Architecture, where: str) -> None:
    """Raise ModelError for a mixture of experts, whatever its config.json calls their number."""
    if config.layout.experts:
        refuse_mixture(where)


def refuse_trial(config: Architecture, where: str) -> None:
    """Raise ModelError for what a small copy cannot do, see `model.trial`; tried once for a config.json."""

    def tried(configuration: "PretrainedConfig") -> dict[str, Any]:
        from dist_sft.model.trial import try_architecture

        return try_architecture(configuration)

    if found := config.remembered("trial", tried):
        raise ModelError(found["what"], where=where, fix=found["fix"])


def frozen_parts(config: Architecture) -> tuple[str, ...]:
    """A note on what text never reaches, see `model.text_path`; none for a model of text alone. Raises ModelError."""
    if not (frozen := config.layout.beside_parts):
        return ()
    count = f"{sum(frozen.values()):,} parameters that text never reaches"
    return (f"{count} stay as they are, and are in the export: {', '.join(frozen)}",)


def refuse_positions(config: Architecture, context_length: int, where: str) -> None:
    """Raise ModelError where samples may be longer than a table of positions."""
    rows = config.layout.positions
    if rows is not None and rows < context_length:
        raise ModelError(
            f"the model has {rows} positions, and a sample may have {context_length} tokens (data.context_length)",
            where=f"{where}/config.json",
            fix=f"set data.context_length={rows}; what longer samples become is data.overlong",
        )


def far_positions(config: Architecture, longest: int, where: str) -> tuple[str, ...]:
    """A note where samples are longer than a model that computes its positions has ever seen. longest: tokens."""
    known = _reach(config.get_text_config())
    if known is None or longest <= known:
        return ()
    return (
        f"samples have up to {longest} tokens, and {where} knows positions up to {known} (max_position_embeddings): "
        f"{longest / known:.3g} times as far it has not seen; shorten data.context_length, or scale its RoPE",
    )


def refuse_tokens(vocabulary: Vocabulary, config: Architecture, where: str) -> tuple[str, ...]:
    """Raise ModelError for ids of a tokenizer that the embedding has no rows for; a note where no text has them."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    beyond = {token: id_ for token, id_ in _ids(vocabulary) if rows is not None and id_ >= rows}
    if not beyond:
        return ()
    size, first = max(beyond.values()) + 1, min(beyond, key=beyond.__getitem__)
    sizes = f"the tokenizer has ids up to {size - 1} ({first!r} is {beyond[first]}), and the embedding has {rows} rows"
    if all(re.search(MODALITY, token, re.IGNORECASE) for token in beyond):
        return (f"{sizes}: these stand for no text, and no row may hold them",)
    raise ModelError(
        sizes,
        where=where,
        fix=f"give the model rows for them: model.resize_token_embeddings({size}), then save it beside the tokenizer; "
        "or take the tokenizer that the model was trained with",
    )


def _quantised(config: Any) -> str | None:
    """How, by quant_method or another name; None where it is not."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found:
            return str(found.get("quant_method") or "unknown method")
    return None


def _reach(text: Any) -> int | None:
    """Positions that a model was trained with, as far as its config.json says; scaled RoPE reaches further."""
    longest = getattr(text, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 2:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
        if original and factor:
            longest = max(longest, int(original * factor))
    return longest


def _ids(vocabulary: Vocabulary) -> Iterator[tuple[str, int]]:
    """All tokens and their ids, added ones among them."""
    content = json.loads(vocabulary.backend)
    yield from ((token["content"], token["id"]) for token in content.get("added_tokens") or ())
    held = content["model"].get("vocab") or {}
    pairs = held.items() if isinstance(held, dict) else ((entry[0], id_) for id_, entry in enumerate(held))
    yield from pairs
