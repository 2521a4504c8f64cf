"""Refuse models that would be trained wrongly without a word.

Each rule here is a way in which a model leaves something out that the rest of the code relies on.
"""

from typing import NoReturn

from dist_sft.core.errors import ModelError
from dist_sft.model.architecture import Architecture, Values
from dist_sft.model.sizes import head_size

DROPOUTS = ("attention_probs_dropout_prob", "dropout", "activation_dropout")
"""Dropout that models apply in functions, from a generator. That of nn.Dropout modules is replaced instead, and that on
attention weights is in `model.attention`."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def refuse_unsupported(config: Architecture, context_length: int, packing: bool, where: str) -> None:
    """Raise ModelError for an architecture or a setting of its config.json that this package cannot train right.

    context_length: longest sample, tokens. where: model.path.
    """
    text = config.get_text_config()
    place = f"{where}/config.json"
    for name in DROPOUTS:
        if getattr(text, name, 0.0):
            raise ModelError(
                f"{name} is {getattr(text, name)}: dropout inside functions cannot follow a sample",
                where=place,
                fix=f"set {name} to 0; model.tuning.dropout and model.neftune are there against overfitting",
            )
    for name in EXPERTS:
        if (getattr(text, name, None) or 0) > 1:
            refuse_mixture(where)
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk and chunk < context_length:
        raise ModelError(
            f"attention in chunks of {chunk} tokens is not supported", where=place,
            fix=f"lower data.context_length to {chunk}",
        )  # fmt: skip
    _refuse_rope_by_length(text, context_length, packing, place)


def refuse_mixture(where: str) -> NoReturn:
    """Raises ModelError. where: model.path."""
    raise ModelError(
        "mixtures of experts are not supported yet", where=f"{where}/config.json", fix="choose a dense model"
    )


def refuse_split(config: Architecture, neighbours: int, where: str) -> None:
    """Raise ModelError where attention cannot be split between so many ranks (train.sequence_parallel), by heads."""
    if neighbours == 1:
        return
    text = config.get_text_config()
    heads, groups = _heads(text)
    if neighbours not in (possible := splits(config)):
        raise ModelError(
            f"{heads} heads with {groups} heads of keys cannot be split between {neighbours} ranks",
            where=f"{where}/config.json",
            fix=f"set train.sequence_parallel to one of {', '.join(map(str, possible))}",
        )
    head = head_size(text)
    if getattr(text, "v_head_dim", head) != head:
        raise ModelError(
            "keys and values of different sizes cannot be split between ranks",
            where=where,
            fix="set train.sequence_parallel=1",
        )


def splits(config: Architecture) -> list[int]:
    """Into how many ranks attention can be split by heads, 1 among them."""
    heads, groups = _heads(config.get_text_config())
    return [n for n in range(1, heads + 1) if heads % n == 0 and (groups % n == 0 or n % groups == 0)]


def _heads(text: Values) -> tuple[int, int]:
    """Of queries, and of keys and values."""
    return text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads


def _refuse_rope_by_length(text: Values, context_length: int, packing: bool, place: str) -> None:
    """Some RoPE scalings look at the longest position of the whole pack: a sample would depend on its neighbours."""
    rope = getattr(text, "rope_parameters", None) or {}
    scalings = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # by layer type, in some models
    for scaling in scalings:
        original = scaling.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        ) or getattr(text, "max_position_embeddings", None) or context_length  # fmt: skip
        if packing and scaling.get("rope_type") in ("longrope", "dynamic") and context_length > original:
            raise ModelError(
                f"{scaling['rope_type']} RoPE scales by the longest sample of a pack beyond {original} tokens",
                where=place,
                fix=f"lower data.context_length to {original}, or set train.packing=false",
            )
