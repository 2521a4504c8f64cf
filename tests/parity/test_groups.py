"""Losses and supervised tokens by source and by tag are the same however a run is executed, and change nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run
from tests.parity.by_hand import losses_by_group
from tests.ranks import losses, records, train_on_ranks

STEPS, EVERY = 4, 2
TAGS = ("math", "code", "math", None, "code", "math", "poems")
EXECUTED = {
    "one rank": {},
    "each sample alone": {"packing": False},
    "two ranks": {"workers": 2, "stage": 3},
    "two ranks, each sample alone": {"workers": 2, "packing": False},
    "two ranks share each pack": {"workers": 2, "stage": 3, "sequence_parallel": 2},
    "three ranks": {"workers": 3, "stage": 2, "micro_steps": 2},
    "three ranks, each sample alone": {"workers": 3, "packing": False},
}
"""7 samples a step: of three ranks that take one at a time, two have nothing to do at the end."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of chats of many lengths, weights and tags, some without."""
    from dist_sft.demo.dataset import conversations

    folder, chats = tmp_path_factory.mktemp("rows"), []
    for i, row in enumerate(conversations(seed=4, count=36, held_out=False)):
        messages = [dict(turn) for turn in row.messages]
        messages[-1]["loss_weight"] = (1.0, 0.5, 1.0, 0.1, 3.0)[i % 5]
        if i % 6 == 0:
            messages[0]["content"] += " please" * i
        chats.append(json.dumps({"messages": messages, "tag": TAGS[i % len(TAGS)]}) + "\n")
    (folder / "large.jsonl").write_text("".join(chats[:24]))
    (folder / "small.jsonl").write_text("".join(chats[24:]))
    return folder


@pytest.fixture(scope="module")
def settings(tiny_run, files, tmp_path_factory):
    """A function: name, how it is executed -> a run with noise."""
    folder = tmp_path_factory.mktemp("groups")
    sources = [{"path": str(files / "large.jsonl"), "weight": 2}, {"path": str(files / "small.jsonl"), "weight": 1}]
    train = {"samples_per_step": 7, "steps": STEPS, "learning_rate": 0.01, "schedule": "constant", "warmup": 0}
    shared = tiny_run | {
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "data": tiny_run["data"] | {"sources": sources, "overlong": "error"},
        "eval": {"source": {"path": str(files / "small.jsonl")}, "every": EVERY},
        "checkpoint": {"every": EVERY},
    }

    def run(name, workers=1, stage=0, group_by="tag", **how):
        return shared | {
            "run": {"name": "groups", "dir": str(folder / name), "seed": 3},
            "train": tiny_run["train"] | train | {"optimizer": {"name": "sgd"}} | how,
            "cluster": {"workers": workers, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": stage}},
            "tracking": {"group_by": group_by},
        }

    return run


@pytest.fixture(scope="module")
def runs(settings):
    """Folders: of each way to execute the run; of one without group_by, and one that has it from its resume on; and of
    one that is resumed on three ranks."""
    all_runs = {name: settings(name, **how) for name, how in EXECUTED.items()}
    all_runs["ungrouped"] = settings("ungrouped", group_by=None)
    all_runs["grouped later"] = settings("grouped later", workers=2, stage=3)
    all_runs["resumed"] = settings("resumed", workers=3, stage=2)
    folders = {name: Path(run["run"]["dir"]) for name, run in all_runs.items()}
    for ranks in (1, 2, 3):
        train_on_ranks([run for run in all_runs.values() if run["cluster"]["workers"] == ranks], ranks)
        if ranks == 1:
            for name, whole in (("grouped later", "ungrouped"), ("resumed", "one rank")):
                shutil.copytree(folders[whole], folders[name])
                shutil.rmtree(newest(folders[name]))
    return folders


def groups(record):
    """Of a record: loss, weight and tokens by (by, last part of the name)."""
    return {
        (group["by"], group["name"].rpartition("/")[2]): (group["loss"], group["weight"], group["tokens"])
        for group in record["groups"]
    }


def both(folder):
    """Records of steps and evaluations."""
    return records(folder) + records(folder, "eval")


@pytest.mark.xdist_group("groups")
def test_losses_and_tokens_by_group_are_the_same_however_a_run_is_executed(runs):
    expected = [groups(record) for record in both(runs["one rank"])]
    assert len(expected) == STEPS + 1 + STEPS // EVERY
    names = {name for found in expected for name in found}
    tags = {("tag", tag) for tag in ("math", "code", "poems", "none")}
    assert names == {("source", "large.jsonl"), ("source", "small.jsonl")} | tags
    for name in [*EXECUTED, "resumed"]:
        found = [groups(record) for record in both(runs[name])]
        assert [[*each] for each in found] == [[*each] for each in expected], name
        for one, other in zip(found, expected, strict=True):
            assert {key: tokens for key, (*_, tokens) in one.items()} == {key: t for key, (*_, t) in other.items()}
            for key, values in one.items():
                assert values == pytest.approx(other[key], rel=1e-6), (name, key)


@pytest.mark.xdist_group("groups")
def test_the_mean_of_the_losses_by_their_weights_is_the_loss(runs):
    for name in EXECUTED:
        for record in both(runs[name]):
            for by in ("source", "tag"):
                loss, weight, tokens = zip(*(v for key, v in groups(record).items() if key[0] == by), strict=True)
                mean = sum(a * b for a, b in zip(loss, weight, strict=True)) / sum(weight)
                assert mean == pytest.approx(record["loss"], rel=1e-6), (name, by)
                assert sum(tokens) == record["supervised" if record["kind"] == "step" else "tokens"]


@pytest.mark.xdist_group("groups")
def test_groups_of_the_first_losses_are_those_of_each_sample_by_hand(runs, files, tiny_run):
    """In float64, with transformers alone; without noise, which the first evaluation has not either."""
    rows = [json.loads(line) for line in (files / "small.jsonl").read_text().splitlines()]
    expected = losses_by_group(
        tiny_run["model"]["path"], rows, lambda row: (("source", "small.jsonl"), ("tag", row["tag"] or "none"))
    )
    found = groups(records(runs["three ranks"], "eval")[0])
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], rel=1e-6) for key in expected)


@pytest.mark.xdist_group("groups")
def test_tokens_and_weights_of_a_step_are_those_of_its_rows(runs, settings):
    train = RunData.of(open_run(settings("unused"))).train
    for record in records(runs["two ranks share each pack"]):
        step, expected = train.rows.encode(record["step"] - 1, train.steps.samples(record["step"] - 1)), {}
        for id_, sample in zip(step.ids, step.samples, strict=True):
            source = train.rows.sources[id_.source]
            for key in (("source", source.name.rpartition("/")[2]), ("tag", source[id_.row]["tag"] or "none")):
                weight, tokens = expected.get(key, (0.0, 0))
                expected[key] = weight + float(sample.weights.sum()), tokens + int((sample.weights > 0).sum())
        found = {key: (weight, tokens) for key, (_, weight, tokens) in groups(record).items()}
        assert found == {key: (pytest.approx(weight), tokens) for key, (weight, tokens) in expected.items()}


@pytest.mark.xdist_group("groups")
def test_what_is_learned_is_bit_for_bit_the_same_without_group_by(runs):
    assert losses(runs["ungrouped"]) == losses(runs["one rank"])
    found, expected = (consolidated(newest(runs[name])) for name in ("ungrouped", "one rank"))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    evals = [[record["loss"] for record in records(runs[name], "eval")] for name in ("ungrouped", "one rank")]
    assert evals[0] == evals[1]


@pytest.mark.xdist_group("groups")
def test_group_by_may_be_set_when_a_run_is_resumed(runs):
    kinds = [{by for by, _ in groups(record)} for record in records(runs["grouped later"])]
    assert kinds == [{"source"}] * EVERY + [{"source", "tag"}] * (STEPS - EVERY)
    for record, expected in zip(records(runs["grouped later"]), records(runs["one rank"]), strict=True):
        for key, values in groups(record).items():
            assert values == pytest.approx(groups(expected)[key], rel=1e-6)
