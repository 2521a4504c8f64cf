"""What is said to travel between ranks, against what DeepSpeed's collectives carried on real gloo ranks."""

import pytest

from dist_sft.config.run_config import RunConfig
from dist_sft.estimate.traffic import Collective, Sizes, traffic
from dist_sft.model.architecture import Architecture
from dist_sft.run.opened import open_run
from tests.measured import measure_on_ranks
from tests.ranks import records

pytestmark = pytest.mark.xdist_group("measured")

CALLS = {"all-gather": "all_gather_into_tensor", "reduce-scatter": "reduce_scatter_tensor", "all-reduce": "all_reduce"}
SMALL = 1000
"""Bytes of a step that are neither weights nor gradients: the loss, the norm of the gradient."""
ADAPTER = {"tuning": {"kind": "lora", "rank": 8}}
CASES = {
    "plain": (0, {}, {}),
    "ZeRO-1": (1, {}, {}),
    "ZeRO-1, bfloat16": (1, {}, {"dtype": "bfloat16"}),
    "ZeRO-1, adapter": (1, {}, ADAPTER),
    "ZeRO-2": (2, {}, {}),
    "ZeRO-3": (3, {"stage3_param_persistence_threshold": 0}, {}),
    "ZeRO-3, recomputed": (3, {"stage3_param_persistence_threshold": 0}, {"gradient_checkpointing": True}),
    "ZeRO-3, bfloat16": (3, {"stage3_param_persistence_threshold": 0}, {"dtype": "bfloat16"}),
    "ZeRO-3, small weights whole": (3, {"stage3_param_persistence_threshold": 20000}, {}),
    "ZeRO-3, adapter": (3, {"stage3_param_persistence_threshold": 0}, ADAPTER),
    "ZeRO-3, adapter, recomputed": (
        3,
        {"stage3_param_persistence_threshold": 0},
        ADAPTER | {"gradient_checkpointing": True},
    ),
}


def run(tiny_run, folder, world, case, tokens_per_pack=256):
    stage, zero, model = case
    return tiny_run | {
        "run": {"dir": str(folder)},
        "model": tiny_run["model"] | model,
        "data": tiny_run["data"] | {"context_length": tokens_per_pack},
        "train": {"samples_per_step": 12, "tokens_per_pack": tokens_per_pack, "steps": 4, "micro_steps": 2},
        "checkpoint": {"every": 100},
        "cluster": {"workers": world, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": stage, **zero}, "data_types": {"grad_accum_dtype": "fp32"}},
    }


def said_and_carried(settings, world, measured):
    """Bytes of the last step, by kind of collective and number of ranks."""
    config = RunConfig.model_validate(settings)
    merged = open_run(config).deepspeed_for(world, "cpu")
    sizes = Sizes.of(config, Architecture.load(config.model, None), merged)
    micro_steps = records(config.run.dir)[-1]["micro_steps"]
    said = {}
    for one in traffic(config, merged, sizes, micro_steps):
        key = CALLS[one.kind], str(one.ranks)
        said[key] = said.get(key, 0) + one.carried
    carried = {
        (call, ranks): size for call, sizes in measured["carried"].items() for ranks, size in sizes.items()
        if size > SMALL
    }  # fmt: skip
    return micro_steps, said, carried


def test_what_travels_in_a_step_is_what_the_collectives_carried(tiny_run, tmp_path, monkeypatch):
    runs = {name: run(tiny_run, tmp_path / name, 2, case) for name, case in CASES.items()}
    measured = measure_on_ranks(list(runs.values()), 2, monkeypatch)
    several = 0
    for (name, settings), ranks in zip(runs.items(), measured, strict=True):
        micro_steps, said, carried = said_and_carried(settings, 2, ranks[0])
        print(name, micro_steps, said, carried)
        assert said.keys() == carried.keys(), (name, said, carried)
        for key, size in carried.items():
            assert said[key] == pytest.approx(size, rel=0.02), (name, key)
        several += micro_steps > 1
    assert several == len(CASES)


def test_a_second_copy_inside_of_a_node_keeps_later_gathers_there(tiny_run, tmp_path, monkeypatch):
    zero = {"stage3_param_persistence_threshold": 0, "zero_hpz_partition_size": 2}
    settings = run(tiny_run, tmp_path / "hpz", 4, (3, zero, {}), tokens_per_pack=64)
    (ranks,) = measure_on_ranks([settings], 4, monkeypatch)
    micro_steps, said, carried = said_and_carried(settings, 4, ranks[0])
    print(micro_steps, said, carried)
    assert micro_steps > 1 and ("all_gather_into_tensor", "2") in carried
    assert said.keys() == carried.keys()
    for key, size in carried.items():
        assert said[key] == pytest.approx(size, rel=0.05), (key, said, carried)


def test_a_ring_sends_all_but_its_own_part_and_stays_in_a_node_where_it_can():
    gather, reduce = (Collective(kind, "x", 3, 8e9, 16) for kind in ("all-gather", "all-reduce"))
    assert gather.sent == 3 * 8e9 * 15 / 16 and reduce.sent == 2 * gather.sent
    assert gather.between_nodes(8) == gather.sent and gather.between_nodes(16) == 0
