"""Which back end computes attention, and what each needs."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PretrainedConfig

from dist_sft.core.errors import ModelError
from dist_sft.model.attention import flash
from dist_sft.model.sizes import head_size

SEGMENTS, VARLEN, FLASH, FLEX = "dist_sft_segments", "dist_sft_varlen", "dist_sft_fa", "dist_sft_flex"
"""Names in transformers' registry. None may contain the word that makes it load kernels of its own ("flash")."""

NAMES = {"segments": SEGMENTS, "varlen": VARLEN, "flash": FLASH, "flex": FLEX}
"""By the name in the run file."""

DROPOUTS = ("attention_dropout", "attn_pdrop")
"""What dropout on attention weights is called in config.json."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What attention must do. head, value: sizes of a head of keys and of values."""

    device: str
    dtype: str
    head: int
    value: int
    softcap: bool
    dropout: float


def choose(wanted: str, device: str, dtype: str, config: PretrainedConfig, dropout: float = 0.0) -> str:
    """The implementation for model.attention, by its name in transformers' registry.

    dropout: on attention weights. Raises ModelError where the back end that is asked for cannot run.
    """
    text = config.get_text_config()
    head = head_size(text)
    softcap = getattr(text, "attn_logit_softcapping", None) is not None
    wish = _Wish(device, dtype, head, getattr(text, "v_head_dim", head), softcap, dropout)
    if wanted == "auto":
        return next(NAMES[name] for name in ("flash", "varlen", "segments") if not any(_missing(name, wish)))
    if missing := next(_missing(wanted, wish), None):
        raise ModelError(
            f"model.attention is {wanted}, which needs {missing}",
            fix="use model.attention=auto",
        )
    return NAMES[wanted]


def name_of(implementation: str) -> str:
    """The name in the run file of one in transformers' registry, for logs."""
    return next((name for name, registered in NAMES.items() if registered == implementation), implementation)


def dropout_of(setting: float | None, config: PretrainedConfig) -> float:
    """Share of the attention weights to drop: model.attention_dropout, or else what config.json says."""
    text = config.get_text_config()
    given = (getattr(text, name, None) for name in DROPOUTS)
    return next((p for p in given if p), 0.0) if setting is None else setting


def _missing(name: str, wish: _Wish) -> Iterator[str]:
    """What a back end needs and does not have."""
    if name == "segments":
        return
    if wish.dropout:
        yield (
            "attention without dropout: its kernel draws from a generator, so that a sample would learn something else "
            "in another pack (segments has dropout that follows the sample; or set model.attention_dropout=0)"
        )
    if name == "flex" and wish.device == "cpu":
        return
    if wish.device != "cuda":
        yield "a CUDA device"
    if name != "flex" and wish.dtype != "bfloat16":
        yield "model.dtype=bfloat16"
    if name != "flex" and wish.head > 256:
        yield "heads of at most 256"
    if name != "flex" and wish.value != wish.head:
        yield "keys and values of one size"
    if name == "varlen" and wish.softcap:
        yield "attention without a soft cap"
    if name == "flash" and not flash.installed():
        yield "the package flash_attn (or flash_attn_interface on Hopper), which is not installed or does not load"
