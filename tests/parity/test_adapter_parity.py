"""LoRA's relatives: world size, ZeRO stage, packing and recomputation change nothing, and the base stays as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.parity.cases import STEPS, Case
from tests.ranks import losses, train_on_ranks

KINDS = {
    "rslora": {"scaling": "rslora"},
    "dora": {"dora": True, "dropout": 0.2},
    "pissa": {"init": "pissa"},
    "lora+": {"b_rate_ratio": 16},
    "whole": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "tied": {"modules_to_save": ["lm_head"]},
    "all": {
        "scaling": "rslora",
        "dora": True,
        "init": "pissa",
        "b_rate_ratio": 4,
        "modules_to_save": ["norm"],
        "targets": ["q_proj", "down_proj"],
    },
    "head": {"init": "pissa", "targets": ["q_proj", "lm_head"]},
}
REFERENCE = Case(1, 0, packs="alone", tuning="lora", optimizer="adamw")
SHARDED = [replace(REFERENCE, ranks=2, stage=3, packs="one")]
MORE = [*SHARDED, replace(REFERENCE, ranks=2, stage=2, packs="three"), replace(SHARDED[0], recompute=True)]
CASES = {kind: SHARDED if kind in ("rslora", "lora+", "whole") else MORE for kind in KINDS}


GROUPS = [("rslora", "lora+", "dora", "whole"), ("pissa", "tied", "all", "head")]


@pytest.fixture(scope="module", params=GROUPS, ids=" ".join)
def runs(request, tiny_run, tied_model, tmp_path_factory):
    """Folders of runs, by kind and case."""
    folder, settings = tmp_path_factory.mktemp("adapters"), {}
    for kind in request.param:
        model = {"tuning": {"kind": "lora", "rank": 4, "alpha": 8, **KINDS[kind]}}
        model |= {"path": str(tied_model)} if kind == "tied" else {"neftune": {"alpha": 5}}
        for number, case in enumerate((REFERENCE, *CASES[kind])):
            one = case.settings(tiny_run, folder / f"{kind}{number}", **model)
            one["train"] |= {"learning_rate": 0.005, "epochs": None, "steps": STEPS}
            settings[kind, case] = one | {"frozen": f"{one['run']['dir']}.frozen"}
    for ranks in (1, 2):
        train_on_ranks([one for (_, case), one in settings.items() if case.ranks == ranks], ranks)
    return {key: Path(one["run"]["dir"]) for key, one in settings.items()}


@pytest.mark.xdist_group("parity-adapters")
def test_losses_are_the_same(runs):
    for (kind, case), folder in runs.items():
        expected = losses(runs[kind, REFERENCE])
        assert len(expected) == STEPS and abs(expected[STEPS] - expected[1]) > 0.1
        assert losses(folder) == pytest.approx(expected, abs=1e-5), (kind, case)


@pytest.mark.xdist_group("parity-adapters")
def test_parameters_are_the_same(runs):
    for (kind, case), folder in runs.items():
        expected, weights = consolidated(newest(runs[kind, REFERENCE])), consolidated(newest(folder))
        trained = {name for name in expected if "lora_" in name or "modules_to_save" in name}
        assert trained and trained <= set(weights)
        for name in trained:
            message = f"{kind} {case} {name}"
            torch.testing.assert_close(weights[name], expected[name].float(), atol=1e-5, rtol=0, msg=message)


@pytest.mark.xdist_group("parity-adapters")
def test_the_base_model_is_bit_for_bit_what_is_on_disk(runs, tiny_model, tied_model):
    for (kind, case), folder in runs.items():
        base = AutoModelForCausalLM.from_pretrained(tied_model if kind == "tied" else tiny_model).state_dict()
        frozen = torch.load(f"{folder}.frozen")
        assert len(frozen) >= 20
        for name, value in frozen.items():
            known = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(value, base[known]), f"{kind} {case} {name}"
