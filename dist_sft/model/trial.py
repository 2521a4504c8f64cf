"""Try an architecture on a small copy with random weights: does packing train what transformers runs?

PretrainedConfig ─ miniature ─┬─ as transformers runs it, a sample at a time ──────┐
                              └─ as it is trained here: attention, head, packs ────┴─> equal, or why not

What a model does in its own way (biases on attention, positions from masks, factors on logits, states from token to
token, a look ahead) shows as a difference, whatever it is called.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model import attention, dropout
from dist_sft.model.configuration import auto_class, quiet
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.miniature import smallest
from dist_sft.model.packed import PackedModel
from dist_sft.model.rounding import EXACT, difference, in_float64

LENGTHS = (13, 11)
"""Tokens of the samples of the pack: more than a window of `miniature.WINDOW` holds."""
DEVICE = torch.device("cpu")


def try_architecture(config: PretrainedConfig) -> dict[str, Any]:
    """As JSON values: {} where it is trained as transformers runs it; else what is wrong, and its fix."""
    try:
        with _quiet(), in_float64():
            _try(config)
    except ModelError as error:
        return {"what": error.what, "fix": error.fix}
    except KeyError as error:
        if attention.SEGMENTS not in str(error):
            return _failed(config, error)
        return {"what": f"the layers of {config.model_type} do not use transformers' attention interface", "fix": OTHER}
    except Exception as error:  # noqa: BLE001  # somebody else's model: whatever it raises
        return _failed(config, error)
    return {}


def _failed(config: PretrainedConfig, error: Exception) -> dict[str, Any]:
    return {
        "what": f"a small copy of {config.model_type} cannot be run: {type(error).__name__}: {_line(error)}",
        "fix": OTHER,
    }


OTHER = "choose another model: a decoder whose layers mix tokens by causal attention alone"


def _try(config: PretrainedConfig) -> None:
    """Raise ModelError, or what the last and largest copy raised."""
    failed: Exception | None = None
    for small in smallest(config):
        try:
            plain, samples, expected = _plain(small)
        except Exception as error:  # noqa: BLE001  # of somebody else's model: a larger copy may run
            failed = error
            continue
        _compare(config, small, plain, samples, expected)
        return
    raise failed or ModelError(
        f"no small copy of {config.model_type} can be made, so that it cannot be tried", fix=OTHER
    )


def _plain(small: PretrainedConfig) -> tuple[Any, list[np.ndarray], list[Tensor]]:
    """The copy as transformers runs it, two samples, and their logits."""
    torch.manual_seed(0)
    plain = _laid(small, "eager")
    samples = _samples(plain.get_input_embeddings().num_embeddings)
    with torch.no_grad():
        return plain, samples, [_alone(plain, sample) for sample in samples]


def _compare(
    config: PretrainedConfig, small: PretrainedConfig, plain: Any, samples: list[np.ndarray], expected: list[Tensor]
) -> None:
    layers = small.get_text_config().num_hidden_layers
    with torch.no_grad():
        _refuse_foresight(config, plain, samples[0], expected[0])
        model = _prepared(small, plain)
        encoded = [EncodedSample(sample, np.zeros(len(sample), np.float32)) for sample in samples]
        pack = build_pack([SampleId(i, 0, i) for i in range(len(samples))], encoded)
        found = model.logits(model.module, pack, None, torch.arange(len(pack.tokens))).split(list(LENGTHS))
    if len(model.context.windows) < layers:
        raise ModelError(
            f"only {len(model.context.windows)} of {layers} layers of {config.model_type} use transformers' attention "
            "interface: in the others the samples of a pack could not be kept apart",
            fix=OTHER,
        )
    _refuse_difference(config, found, expected)


def _refuse_foresight(config: PretrainedConfig, plain: Any, sample: np.ndarray, expected: Tensor) -> None:
    """Whether transformers lets a token see those behind it."""
    changed = sample.copy()
    changed[-1] = sample[0]
    moved = difference([_alone(plain, changed)[:-1]], [expected[:-1]])
    if not moved <= EXACT:
        raise ModelError(
            f"{config.model_type} looks ahead in transformers: a token's logits change by {moved:.2g} of the largest "
            "one with a later token, so that it cannot learn to write",
            fix="choose a decoder; an encoder that was trained as a decoder says so by is_decoder: true in config.json",
        )


def _refuse_difference(config: PretrainedConfig, found: Any, expected: list[Tensor]) -> None:
    moved = difference(found, expected)
    if not moved <= EXACT:
        raise ModelError(
            f"{config.model_type} would be trained as another model than transformers runs: logits differ by "
            f"{moved:.2g} of the largest one (its layers use more than transformers' attention interface is told)",
            fix=OTHER,
        )


def _laid(small: PretrainedConfig, implementation: str) -> Any:
    config = copy.deepcopy(small)
    model: Any = auto_class(config).from_config(config, dtype=torch.float64, attn_implementation=implementation)
    model.eval()
    model.config.use_cache = False
    return model


def _prepared(small: PretrainedConfig, plain: Any) -> PackedModel:
    """The same weights, as `model.load` would prepare them."""
    attention.register()
    model = _laid(small, attention.SEGMENTS)
    model.load_state_dict(plain.state_dict())
    pack = PackContext()
    dropout.replace_dropout(model, pack)
    attach_head(model, pack)
    pack.attach(model)
    return PackedModel(model.eval(), pack, 0, DEVICE)


def _samples(vocabulary: int) -> list[np.ndarray]:
    """Of tokens that are not special, where ids below 8 are."""
    low = min(8, vocabulary // 2)
    ids = seeds.mix64(np.arange(sum(LENGTHS), dtype=np.uint64)) % np.uint64(vocabulary - low) + np.uint64(low)
    return [part.astype(np.int32) for part in np.split(ids, np.cumsum(LENGTHS)[:-1])]


def _alone(model: Any, sample: np.ndarray) -> Tensor:
    """[T, V]: of transformers' own code, which is told nothing but the tokens."""
    logits: Tensor = model(input_ids=torch.from_numpy(sample).long()[None], use_cache=False).logits[0]
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the logits of a small copy are not finite", fix=OTHER)
    return logits


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of what a small copy is not, and random numbers of others stay as they were."""
    with quiet(), torch.random.fork_rng(devices=[]):
        yield
