"""On the run's own samples: a pack computes what each of its samples computes alone, forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from dist_sft.model.rounding import EXACT, difference, in_float64, largest
from dist_sft.proofs.head import check_head
from dist_sft.proofs.isolation import prove_isolation
from dist_sft.proofs.proof import Proof

SAMPLES, TOKENS = 4, 64
"""Of the pack that is looked at."""
CHANGE = "choose another model or another model.attention, and report this one"


def prove_packing(config: RunConfig, architecture: PretrainedConfig, samples: Sequence[EncodedSample]) -> list[Proof]:
    """Isolation, the head, and packs against samples alone. samples: some of the run's.

    On the run's model in float64 on the CPU, or on a small copy of it where it is too large: there, what differs is no
    rounding. Where it has a sliding window, isolation also on a copy in which it slides.
    """
    whole = count_parameters(architecture) <= LARGEST
    with _loaded(config, architecture, copied=not whole) as (model, which), in_float64():
        proofs = [_isolation(config, model, which), *_of_packs(model, samples, which)]
    if whole and slides(architecture):
        with _loaded(config, architecture, copied=True) as (model, which), in_float64():
            proofs.insert(1, _isolation(config, model, f"{which}, windows of {WINDOW} tokens"))
    return proofs


@contextmanager
def _loaded(config: RunConfig, architecture: PretrainedConfig, copied: bool) -> Iterator[tuple[PackedModel, str]]:
    """The run's model in float64, or a miniature of it; and which it is, with the attention that computes it here."""
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
        stage, device = {"zero_optimization": {"stage": 0}}, torch.device("cpu")
        model = load(settings, architecture, stage, config.run.seed, device, 1)
        model.module.double()
        yield model, which


def _isolation(config: RunConfig, model: PackedModel, which: str) -> Proof:
    return _tried(
        "no sample sees another, no token the future",
        lambda: prove_isolation(model, _vocabulary(model), config.data.context_length).largest,
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
        Proof.measured("packed as alone: logits", difference(packed, alone), EXACT, detail, CHANGE),
        Proof.measured("packed as alone: gradients", _gradients(model, parts), EXACT, detail, CHANGE),
        Proof.measured(
            "poisoning a sample moves no other", difference(packed[1:], poisoned[1:]), EXACT, detail, CHANGE
        ),
    ]


def _vocabulary(model: PackedModel) -> int:
    size: int = model.module.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    return size


def _tried(name: str, proof: Callable[[], float], which: str) -> Proof:
    try:
        return Proof.measured(name, proof(), EXACT, which, CHANGE)
    except ModelError as error:
        return Proof.refuted(name, error)


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
    """Of the summed loss, packed less alone: the largest over all parameters, relative to the largest gradient."""
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]

    def add(pack: Pack, sign: int) -> None:
        scores, weights = model.token_scores(model.module, pack, 0)  # with noise and dropout, where there are any
        ((scores[:, 0] - scores[:, 1]) * weights * sign).sum().backward()

    def most() -> float:
        return largest(float(p.grad.abs().max()) for p in trained if p.grad is not None)

    for parameter in trained:
        parameter.grad = None
    add(_pack(parts), 1)
    size = most()
    for i, part in enumerate(parts):  # on top of it: a second copy of all gradients would cost as much as the model
        add(build_pack([SampleId(i, 0, i)], [part]), -1)
    return most() / max(size, 1e-12)
