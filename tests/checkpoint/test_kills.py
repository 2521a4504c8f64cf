"""SIGKILL at any moment of saving: what is found afterwards is whole and right, and the run goes on from it."""

import random
import time

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest, whole_steps
from tests.forked_ranks import ForkedRanks, kill
from tests.ranks import losses

STEPS, WORLD = 12, 2


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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with open(tmp_path_factory.mktemp("log") / "ranks.log", "w+") as log:
        forked = ForkedRanks(log)
        yield forked
        forked.close()


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
def expected(tiny_run, model, ranks, tmp_path_factory):
    """The folder of a run that nobody killed, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("expected")
    ranks.start(settings(tiny_run, model, folder / "run", keep=99), WORLD, folder / "store")
    assert ranks.wait() == [0] * WORLD
    return folder / "run"


@pytest.mark.xdist_group("kills-while-saving")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_kill_at_any_moment_of_saving_never_leaves_a_wrong_checkpoint(
    tiny_run, model, ranks, expected, tmp_path, kills
):
    dice, done, runs = random.Random(kills), 0, 0
    while done < kills:
        runs += 1
        run = tmp_path / f"run{runs}"
        for start in range(2 * STEPS):
            attempt = f"start{runs}.{start}"
            pids = ranks.start(settings(tiny_run, model, run, keep=2), WORLD, tmp_path / attempt)
            while not list(run.glob(f"checkpoints/step_*/*-{attempt}/*")) and alive(pids):
                time.sleep(0.002)  # until the first file of its first checkpoint is there
            if done < kills:
                time.sleep(dice.random() * 1.0)
                kill(pids)
            codes = ranks.wait()
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
