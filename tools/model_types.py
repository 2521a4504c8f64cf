"""Try every causal type of transformers on a small random copy: it trains rightly, or is refused, with which words?

    python -m tools.model_types                 all of them, a line each
    python -m tools.model_types llama bert      these
    python -m tools.model_types --write         all, and docs/model_types.md anew
    python -m tools.model_types --write llava   this one, and its row in docs/model_types.md

CONFIG_MAPPING[type]() ─ the doors of a run ─ a copy on disk ─ proofs, and transformers' own gradients as the oracle
"""

import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.load import load_config
from dist_sft.config.sections import LoraTuning, ModelSection
from dist_sft.core.errors import SftError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.estimate.cost import model_cost
from dist_sft.estimate.memory import memory_of_a_rank
from dist_sft.model.architecture import Architecture
from dist_sft.model.capacity import count_trained
from dist_sft.model.complete import refuse_incomplete
from dist_sft.model.configuration import auto_class
from dist_sft.model.load import load
from dist_sft.model.miniature import save_random, smallest
from dist_sft.model.rounding import EXACT, in_float64
from dist_sft.model.supported import refuse_unsupported
from dist_sft.model.trainable import frozen_parts, refuse_architecture, refuse_experts, refuse_positions, refuse_trial
from dist_sft.proofs.packing import prove_packing
from dist_sft.run.opened import open_run

TRAINS, REFUSED, ABSENT = "trains", "refused", "no copy"
WRONG, CRASHES = "TRAINS WRONGLY", "CRASHES"
TABLE = Path(__file__).resolve().parents[1] / "docs" / "model_types.md"
LENGTHS = (31, 17, 23)


@dataclass(frozen=True)
class Verdict:
    """verdict: one of the words above; why: the words of a refusal, or how far gradients were from transformers'."""

    type: str
    verdict: str
    why: str


def types() -> list[str]:
    """All that transformers takes for causal, or for a language model with towers, by name."""
    return sorted({**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES})


def judge(name: str) -> Verdict:
    """Never raises."""
    try:
        config = CONFIG_MAPPING[name]()
        text = config.get_text_config()
        for setting, value in list(vars(text).items()):
            if isinstance(value, float) and ("dropout" in setting or "pdrop" in setting):
                setattr(text, setting, 0.0)  # what it does else is looked for
    except Exception as error:  # noqa: BLE001  # a type whose defaults are no model
        return Verdict(name, ABSENT, f"transformers makes no config of defaults: {_line(error)}")
    small = next(smallest(config), None)
    with tempfile.TemporaryDirectory(prefix="dist_sft_types_") as folder:
        try:
            return _judged(name, config, small, folder)
        except SftError as error:
            return Verdict(name, REFUSED, error.what)
        except Exception as error:  # noqa: BLE001  # what is looked for
            return Verdict(name, CRASHES, f"{type(error).__name__}: {_line(error)}")


def _judged(name: str, config: PretrainedConfig, small: PretrainedConfig | None, folder: str) -> Verdict:
    """Raises SftError where a run would be refused; what else it raises is a crash of ours."""
    settings = ModelSection(path=folder, dtype="float32")
    known = Architecture.of(config)
    refuse_architecture(known, name)
    refuse_experts(Architecture.of(small) if small else known, folder)
    refuse_trial(known, folder)
    refuse_unsupported(known, sum(LENGTHS), True, name)
    assert small is not None, "what cannot be tried is refused"
    save_random(small, Path(folder), 0)
    architecture = Architecture.load(settings, None)
    frozen_parts(architecture)
    refuse_positions(architecture, sum(LENGTHS), folder)
    refuse_incomplete(settings, architecture)
    _estimates(architecture, folder)
    samples = _samples(architecture.get_text_config().vocab_size)
    for proof in prove_packing(_run(folder), architecture.configuration, samples):
        if proof.holds is False and proof.figure is None:
            return Verdict(name, REFUSED, proof.detail)
        if proof.holds is False:
            return Verdict(name, WRONG, f"{proof.name}: {proof.figure} {proof.detail}")
    with in_float64():
        away = _away(settings, architecture.configuration, samples)
    return Verdict(name, TRAINS if away <= EXACT else WRONG, f"{away:.0e}")


def _run(folder: str):  # noqa: ANN202
    return load_config(
        {
            "run": {"name": "types", "dir": f"{folder}/run"},
            "model": {"path": folder, "dtype": "float32"},
            "data": {"sources": [{"path": "rows.jsonl"}], "context_length": 64},
            "train": {"samples_per_step": 3, "tokens_per_pack": 128, "steps": 1},
            "cluster": {"workers": 1, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": 0}},
        }
    )


def _estimates(architecture: Architecture, folder: str) -> None:
    """What `plan` and `check` compute of an architecture must not fail."""
    for trains in (True, False):
        assert model_cost(architecture, trains_weights=trains).flops(10.0, 100.0) > 0
    assert count_trained(architecture.layout, LoraTuning(kind="lora")).total > 0
    run = open_run(_run(folder))
    assert memory_of_a_rank(run.config, architecture, run.resolved_deepspeed, "cpu", 0.5).device > 0


def _samples(vocabulary: int) -> list[EncodedSample]:
    random = np.random.default_rng(0)
    samples = []
    for length in LENGTHS:
        weights = np.ones(length, np.float32)
        weights[0] = 0
        samples.append(EncodedSample(random.integers(8, vocabulary, length).astype(np.int32), weights))
    return samples


def _away(settings: ModelSection, architecture: PretrainedConfig, samples: list[EncodedSample]) -> float:
    """How far the gradient of a pack is from that which transformers' own loss gives, one sample after the other."""
    oracle = (
        auto_class(architecture).from_pretrained(settings.path, dtype=torch.float64, attn_implementation="eager").eval()
    )
    for sample in samples:
        ids = torch.from_numpy(sample.tokens).long()[None]
        logits = oracle(input_ids=ids, use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
    packed = load(settings, architecture, {"zero_optimization": {"stage": 0}}, 0, torch.device("cpu"), 1)
    packed.module.double()
    with packed.evaluating():
        pack = build_pack([SampleId(i, 0, i) for i in range(len(samples))], samples)
        scores, weights = packed.token_scores(packed.module, pack, None)
        ((scores[:, 0] - scores[:, 1]) * weights).sum().backward()
    found = {name: p.grad for name, p in packed.module.named_parameters() if p.grad is not None}
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in expected.values())
    if found.keys() != expected.keys():
        return float("inf")
    return max(float((found[name] - grad).abs().max()) for name, grad in expected.items()) / largest


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def rows() -> list[Verdict]:
    """Of docs/model_types.md."""
    found = re.findall(r"^\| (\S+) \| ([^|]+) \| (.*) \|$", TABLE.read_text(), re.MULTILINE)
    return [Verdict(*row) for row in found if row[1] in (TRAINS, REFUSED, ABSENT)]


def write(judged: list[Verdict]) -> None:
    """docs/model_types.md, in which rows of types that were not judged stay."""
    again = {one.type for one in judged}
    kept = [replace(row, why=row.why.replace("\\|", "|")) for row in rows() if row.type not in again]
    verdicts = sorted([*judged, *kept], key=lambda one: one.type)
    count = {word: sum(one.verdict == word for one in verdicts) for word in (TRAINS, REFUSED, ABSENT)}
    version = transformers.__version__
    head = f"""# Model types

What becomes of each of the {len(verdicts)} types that transformers {version} takes for causal language models, or for
language models with towers for images or sound, on text: {count[TRAINS]} train, {count[REFUSED]} are refused, and
{count[ABSENT]} need a real `config.json`.
Written by `python -m tools.model_types --write`; `tests/model/test_types.py` holds it to be true.

*Trains*: on a copy with random weights, no later token changes an earlier logit, no sample of a pack changes another's
logits or gradients, and the gradient of a pack is that of transformers' own model, one sample after the other; the
figure is the largest difference, relative to the largest gradient: in float64, or in float32 where it is above 1e-9
(from before proofs were computed in float64).

Refusals come before anything runs, from `check --fast`, `plan`, `submit` and `train`. What a type does is found out on
a small copy, not looked up in a list: a type that is not in this table is judged in the same way. The default config of
each type was tried; a checkpoint's own may be refused for what it sets (experts, dropout, quantised weights), and
trained where only the size of the default one's towers stood against it.

| type | verdict | gradient's distance, or why |
|---|---|---|
"""
    TABLE.write_text(head + "".join(f"| {one.type} | {one.verdict} | {_cell(one.why)} |\n" for one in verdicts))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """1 where a type trains wrongly or crashes."""
    wanted = [argument for argument in arguments if not argument.startswith("-")] or types()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    verdicts = []
    for name in wanted:
        verdicts.append(verdict := judge(name))
        print(f"{verdict.type:24} {verdict.verdict:15} {verdict.why}", flush=True)  # noqa: T201
    if "--write" in arguments:
        write(verdicts)
    return int(any(one.verdict in (WRONG, CRASHES) for one in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
