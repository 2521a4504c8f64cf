"""SIGKILL at any moment of saving: what is found afterwards is whole and right, and the run goes on from it."""

import os
import random
import time

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest, whole_steps
from tests.ranks import local_ranks, losses

STEPS, WORLD, TIMEOUT = 12, 2, 300


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """4 million weights: a checkpoint has 50 MB, and saving it takes as long as some steps."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def begin(settings, attempt, folder):
    """Process ids of the ranks of a run's start."""
    folder.mkdir()
    spec = {"settings": settings, "attempt": attempt, "store": str(folder / "store")}
    return local_ranks().start("tests.checkpoint.test_kills", spec, WORLD, folder)


def main(spec):
    """One of these ranks."""
    import torch.distributed as dist

    from dist_sft.run.assembly import work

    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group("gloo", init_method=f"file://{spec['store']}", rank=rank, world_size=world)
    work(spec["settings"], spec["attempt"])


def settings(tiny_run, model, folder, keep):
    return tiny_run | {
        "run": {"name": "kills", "dir": str(folder), "seed": 1},
        "model": {"path": str(model), "dtype": "float32", "neftune": {"alpha": 5}},
        "train": tiny_run["train"] | {"steps": STEPS, "samples_per_step": 4, "learning_rate": 0.001},
        "checkpoint": {"every": 1, "keep": keep},
        "cluster": {"workers": WORLD, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }


@pytest.fixture(scope="module")
def expected(tiny_run, model, tmp_path_factory):
    """The folder of a run that nobody killed, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("expected")
    begin(settings(tiny_run, model, folder / "run", keep=99), "expected", folder / "start")
    assert local_ranks().wait(TIMEOUT) == [0] * WORLD
    return folder / "run"


@pytest.mark.xdist_group("kills-while-saving")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_kill_at_any_moment_of_saving_never_leaves_a_wrong_checkpoint(tiny_run, model, expected, tmp_path, kills):
    dice, done, runs = random.Random(kills), 0, 0
    while done < kills:
        runs += 1
        run = tmp_path / f"run{runs}"
        for start in range(2 * STEPS):
            attempt = f"start{runs}.{start}"
            pids = begin(settings(tiny_run, model, run, keep=2), attempt, tmp_path / attempt)
            while not list(run.glob(f"checkpoints/step_*/*-{attempt}/*")) and alive(pids):
                time.sleep(0.002)  # until the first file of its first checkpoint is there
            if done < kills:
                time.sleep(dice.random() * 1.0)
                local_ranks().kill()
            codes = local_ranks().wait(TIMEOUT)
            done += codes != [0] * WORLD
            checked(run, expected)
            if codes == [0] * WORLD:
                break
        assert losses(run) == losses(expected), "the run went on as if nothing had happened"


def alive(pids):
    return all(open(f"/proc/{pid}/stat").read().split()[2] != "Z" for pid in pids)


def checked(run, expected):
    """Every checkpoint that is there is that of the run which nobody killed, bit for bit."""
    for step in whole_steps(run / "checkpoints"):
        found, right = consolidated(newest(run, step)), consolidated(newest(expected, step))
        assert set(found) == set(right) and all(torch.equal(found[name], right[name]) for name in right), step
