"""LoRA's relatives: world size, ZeRO stage, packing and recomputation change nothing, and the base stays as it was."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.parity.test_execution_changes_nothing import Case
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
        "targets": ["q_proj", "down_proj", "lm_head"],
    },
}
REFERENCE = Case(1, 0, packing=False)
SHARDED = [Case(2, 3, packing=True)]
MORE = [*SHARDED, Case(2, 2, packing=True, micro_steps=4), Case(2, 3, packing=True, recompute=True)]
CASES = {kind: SHARDED if kind in ("rslora", "lora+", "whole") else MORE for kind in KINDS}


@pytest.fixture(scope="module")
def runs(tiny_run, tied_model, tmp_path_factory):
    """Folders of all runs, by kind and case."""
    folder = tmp_path_factory.mktemp("adapters")
    settings = {}
    for kind, tuning in KINDS.items():
        model = tiny_run["model"] | {"tuning": {"kind": "lora", "rank": 4, "alpha": 8, **tuning}}
        model |= {"path": str(tied_model)} if kind == "tied" else {"neftune": {"alpha": 5}}
        for case in (REFERENCE, *CASES[kind]):
            one = case.settings(tiny_run | {"model": model}, folder / kind)
            one["train"] |= {"learning_rate": 0.005}
            settings[kind, case] = one | {"frozen": f"{one['run']['dir']}.frozen"}
            (folder / kind).mkdir(exist_ok=True)
    for world in (1, 2):
        train_on_ranks([one for (_, case), one in settings.items() if case.world == world], world)
    return {key: case.folder(folder / key[0]) for key in settings for case in [key[1]]}


@pytest.mark.xdist_group("parity-adapters")
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_same(runs, kind):
    expected = losses(runs[kind, REFERENCE])
    assert len(expected) == 5 and expected[5] < expected[1] - 0.1
    for case in (REFERENCE, *CASES[kind]):
        assert losses(runs[kind, case]) == pytest.approx(expected, abs=1e-5), case


@pytest.mark.xdist_group("parity-adapters")
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_the_same(runs, kind):
    expected = consolidated(newest(runs[kind, REFERENCE]))
    trained = {name for name in expected if "lora_" in name or "modules_to_save" in name}
    for case in (REFERENCE, *CASES[kind]):
        weights = consolidated(newest(runs[kind, case]))
        assert trained <= set(weights)
        for name in trained:
            torch.testing.assert_close(weights[name], expected[name].float(), atol=1e-5, rtol=0, msg=f"{case} {name}")


@pytest.mark.xdist_group("parity-adapters")
@pytest.mark.parametrize("kind", KINDS)
def test_the_base_model_is_bit_for_bit_what_is_on_disk(runs, kind, tiny_model, tied_model):
    base = AutoModelForCausalLM.from_pretrained(tied_model if kind == "tied" else tiny_model).state_dict()
    for case in (REFERENCE, *CASES[kind]):
        frozen = torch.load(f"{runs[kind, case]}.frozen")
        assert len(frozen) >= 20
        for name, value in frozen.items():
            known = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(value, base[known]), f"{case} {name}"
