"""On the run's own samples: a pack computes what each of its samples computes alone, forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import Pack, build_pack
from dist_sft.model.configuration import load_configuration
from dist_sft.model.load import load
from dist_sft.model.meta import count_parameters
from dist_sft.model.miniature import LARGEST, WINDOW, miniature, save_random, slides
from dist_sft.model.packed import PackedModel
from dist_sft.proofs.head import check_head
from dist_sft.proofs.isolation import Isolation, prove_isolation
from dist_sft.proofs.proof import Proof, largest

SAMPLES, TOKENS = 4, 64
"""Of the pack that is looked at."""
ROUNDING = 1e-5
"""Largest difference, relative to the largest value, that is rounding in float32."""
CHANGE = "choose another model or another model.attention, and report this one"


def prove_packing(config: RunConfig, architecture: PretrainedConfig, samples: Sequence[EncodedSample]) -> list[Proof]:
    """Isolation, the head, and packs against samples alone. samples: some of the run's.

    On the run's model in float32 on the CPU, or on a small copy of it where it is too large. Where it has a sliding
    window, isolation also on a copy in which it slides.
    """
    whole = count_parameters(architecture) <= LARGEST
    with _loaded(config, architecture, copied=not whole) as (model, which):
        proofs = [_isolation(config, model, which), *_of_packs(model, samples, which)]
    if whole and slides(architecture):
        with _loaded(config, architecture, copied=True) as (model, which):
            proofs.insert(1, _isolation(config, model, f"{which}, windows of {WINDOW} tokens"))
    return proofs


@contextmanager
def _loaded(config: RunConfig, architecture: PretrainedConfig, copied: bool) -> Iterator[tuple[PackedModel, str]]:
    """The run's model, or a miniature of it; and which it is, with the attention that computes it here."""
    settings, which = config.model.model_copy(update={"dtype": "float32", "compile": False}), "the model"
    if settings.attention in ("flash", "varlen"):
        which += f" (segments in place of {settings.attention})"
        settings = settings.model_copy(update={"attention": "segments"})
    with TemporaryDirectory(prefix="dist_sft_proof_") as folder:
        if copied:
            small = save_random(miniature(architecture), Path(folder), config.run.seed)
            settings = settings.model_copy(update={"path": folder, "revision": None})
            architecture = load_configuration(settings)
            which = which.replace("the model", f"a copy of {small / 1e6:.1f} M parameters")
        yield (
            load(settings, architecture, {"zero_optimization": {"stage": 0}}, config.run.seed, torch.device("cpu"), 1),
            which,
        )


def _isolation(config: RunConfig, model: PackedModel, which: str) -> Proof:
    return _tried(
        "no sample sees another, no token the future",
        lambda: _largest(prove_isolation(model, _vocabulary(model), config.data.context_length)),
        which,
    )


def _of_packs(model: PackedModel, samples: Sequence[EncodedSample], which: str) -> list[Proof]:
    """The head; packs of the data's samples against samples alone."""
    vocabulary = _vocabulary(model)
    head = _tried("loss by the head as by all logits", lambda: check_head(model, model.module, vocabulary), which)
    parts = [_shortened(sample) for sample in sorted(samples, key=len)[-SAMPLES:]]
    detail = f"{len(parts)} samples of the data, {sum(map(len, parts))} tokens, {which}"
    whole = _pack(parts)
    with torch.no_grad():
        packed = _logits(model, whole).split([len(part) for part in parts])
        alone = [_logits(model, _pack([part])) for part in parts]
        poisoned = _logits(model, _pack([_poisoned(parts[0], vocabulary), *parts[1:]])).split([len(p) for p in parts])
    return [
        head,
        Proof.measured("packed as alone: logits", _difference(packed, alone), ROUNDING, detail, CHANGE),
        Proof.measured("packed as alone: gradients", _gradients(model, parts), ROUNDING, detail, CHANGE),
        Proof.measured(
            "poisoning a sample moves no other", _difference(packed[1:], poisoned[1:]), 1e-6, detail, CHANGE
        ),
    ]


def _vocabulary(model: PackedModel) -> int:
    size: int = model.module.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    return size


def _tried(name: str, proof: Callable[[], float], which: str) -> Proof:
    try:
        return Proof.measured(name, proof(), ROUNDING, which, CHANGE)
    except ModelError as error:
        return Proof.refuted(name, error)


def _largest(found: Isolation) -> float:
    return largest(value for value in astuple(found) if value is not None)


def _shortened(sample: EncodedSample) -> EncodedSample:
    """At most TOKENS tokens, all of them to be predicted."""
    tokens = sample.tokens[:TOKENS]
    return EncodedSample(tokens, np.r_[0, np.ones(len(tokens) - 1)].astype(np.float32))


def _poisoned(sample: EncodedSample, vocabulary: int) -> EncodedSample:
    return EncodedSample(((sample.tokens + 1) % vocabulary).astype(np.int32), sample.weights)


def _pack(samples: Sequence[EncodedSample]) -> Pack:
    return build_pack([SampleId(i, 0, i) for i in range(len(samples))], samples)


def _logits(model: PackedModel, pack: Pack) -> Tensor:
    """[T, V], without noise and dropout."""
    return model.logits(model.module, pack, None, torch.arange(len(pack.tokens)))


def _gradients(model: PackedModel, parts: Sequence[EncodedSample]) -> float:
    """Of the summed loss, packed and alone: the difference over the largest, by parameter; the largest of these."""
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]

    def gradient(packs: Sequence[Pack]) -> list[Tensor]:
        for parameter in trained:
            parameter.grad = None
        for pack in packs:
            scores, weights = model.token_scores(model.module, pack, 0)  # with noise and dropout, where there are any
            ((scores[:, 0] - scores[:, 1]) * weights).sum().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]

    together = gradient([_pack(parts)])
    packs = [build_pack([SampleId(i, 0, i)], [part]) for i, part in enumerate(parts)]
    return _difference(together, gradient(packs))


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, over the largest value that was expected."""
    size = largest(float(tensor.abs().max()) for tensor in expected)
    pairs = zip(found, expected, strict=True)
    return largest(float((a - b).abs().max()) for a, b in pairs) / max(size, 1e-12)
