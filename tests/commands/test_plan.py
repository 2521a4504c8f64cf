"""`dist-sft plan`: the deal is that of `steps`, what does not fit has a cure, the cheapest that was tried."""

from statistics import fmean

import pytest
from transformers import LlamaConfig

from dist_sft.commands.planning.changes import changes, recommended
from dist_sft.commands.planning.machine import Machine
from dist_sft.commands.planning.plan import main_memory, make_plan
from dist_sft.commands.planning.workload import Workload
from dist_sft.model.architecture import Architecture
from dist_sft.run.opened import open_run

pytestmark = pytest.mark.xdist_group("cluster")  # one worker makes the run of the fixture

EIGHT_B = Architecture.of(LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
))  # fmt: skip
WORK = Workload(steps=1000, rows=128, lengths=[[1024] * 128], supervised=[64 * 1024])


def eight_b(**settings):
    model = {"path": "m"} | settings.pop("model", {})
    train = {"samples_per_step": 128, "tokens_per_pack": 8192, "steps": 1000} | settings.pop("train", {})
    return open_run({"model": model, "data": {"sources": [{"path": "x"}]}, "train": train, **settings})


@pytest.mark.parametrize("world", [1, 3])
def test_micro_steps_are_those_of_the_deal(sft, run, world):
    planned = sft(
        "plan", run.file, "train.steps=4", "train.tokens_per_pack=1024", "--gpus", world, "--rows", 52, "--json"
    )
    dealt = sft(
        "steps", run.file, "train.steps=4", "train.tokens_per_pack=1024", "--count", 4, "--world", world, "--json"
    )
    assert (planned.code, dealt.code) == (0, 0), planned.error + dealt.error
    (plan,) = planned.values
    assert plan["micro_steps"] == [len(step["tokens"][0]) for step in dealt.values]
    assert plan["tokens_per_step"] == fmean(sum(map(sum, step["tokens"])) for step in dealt.values)
    assert plan["steps_looked_at"] == 4 and plan["rows_looked_at"] == 52


def test_what_does_not_fit_is_named_with_its_cure_and_the_command_fails(sft, run):
    ended = sft("plan", run.file, "train.tokens_per_pack=8192", "--gpus", 2, "--gpu-memory", "64MB", "--json")
    assert ended.code == 1
    (found,) = ended.values
    assert found["fits"] is False and found["memory"]["device"] > found["room"]
    assert found["recommended"] and found["recommended"] in ended.error
    assert "most of it activations" in ended.error and "2 GPUs" in ended.error
    shown = sft("plan", run.file, "train.tokens_per_pack=8192", "--gpus", 2, "--gpu-memory", "64MB")
    assert shown.code == 1 and "does not fit" in shown.out and "cheapest first" in shown.out


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [("--gpu", "RTX", "'RTX' is not a GPU that is known here"), ("--gpu-memory", "lots", "'lots' is not a size"),
     ("--gpu-memory", "1.2.3GB", "'1.2.3GB' is not a size")],
)  # fmt: skip
def test_a_gpu_that_is_not_known_is_refused(refused, run, option, value, what):
    assert what in refused("plan", run.file, option, value)


def test_the_first_change_that_fits_is_the_one_that_is_planned():
    """Eight GPUs hold the 18 bytes of each of 8 G parameters; the activations of 8,192 tokens are what is too much."""
    machine = Machine.of(1, 8, None, "64GB", 0.4)
    plan = make_plan(eight_b(), EIGHT_B, WORK, machine)
    states = plan.memory.weights + plan.memory.gradients + plan.memory.optimizer
    assert states == pytest.approx(18 * 8.03e9 / 8, rel=0.01)
    assert plan.fits is False
    tried = changes(eight_b(), EIGHT_B, WORK, machine)
    assert [change.settings for change in tried][:2] == [
        "model.gradient_checkpointing=true",
        "train.tokens_per_pack=4096",
    ]
    best = recommended(tried)
    assert best and best.settings == "model.gradient_checkpointing=true"
    again = make_plan(eight_b(model={"gradient_checkpointing": True}), EIGHT_B, WORK, machine)
    assert best.plan == again and again.fits


def test_time_is_that_of_six_flops_a_parameter_and_token():
    machine = Machine.of(2, 8, "H100", None, 0.4)
    plan = make_plan(eight_b(), EIGHT_B, WORK, machine)
    attention = 6 * 32 * 4096 * 1024  # forward and backward of the causal half, by token
    expected = machine.ranks * 989e12 * 0.4 / (6 * 7.24e9 + attention)  # half of the tokens go through the head
    assert plan.tokens_per_second == pytest.approx(expected, rel=0.03)
    assert plan.gpu_hours == pytest.approx(1000 * 128 * 1024 / plan.tokens_per_second / 3600 * 16)


def test_where_no_change_alone_is_enough_they_are_put_together():
    machine = Machine.of(1, 1, None, "30GB", 0.4)
    tried = changes(eight_b(deepspeed={"zero_optimization": {"stage": 2}}), EIGHT_B, WORK, machine)
    best = recommended(tried)
    assert best and " and " in best.settings and best.settings.startswith("model.gradient_checkpointing=true and ")
    assert best.plan.memory.device <= machine.room
    assert not any(change.fits for change in tried if " and " not in change.settings)


def test_offloading_and_checkpoints_are_counted_on_the_host_and_the_disk():
    machine = Machine.of(2, 8, "H100", None, 0.4)
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    plan = make_plan(eight_b(deepspeed={"zero_optimization": zero}), EIGHT_B, WORK, machine)
    assert plan.checkpoint_size == pytest.approx(12 * 8.03e9, rel=0.01)
    assert plan.disk == 3 * plan.checkpoint_size
    assert plan.host.checkpoints == plan.checkpoint_size / 2
    assert plan.memory.optimizer == plan.memory.gradients == 0 and plan.host.offloaded > 12 * 8e9 / 2
    assert main_memory(eight_b(deepspeed={"zero_optimization": zero}), EIGHT_B, machine) == plan.host
