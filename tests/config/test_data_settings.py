"""Settings of the mixture and the order that contradict each other are refused with what to change."""

import json

import pytest

from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.load import load_config
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError

A, B = {"path": "a.jsonl"}, {"path": "b.jsonl"}


def weighted(*shares):
    return [{"path": f"{i}.jsonl", **share} for i, share in enumerate(shares)]


@pytest.fixture
def load(tmp_path):
    def run(*data, train=""):
        path = tmp_path / "run.yaml"
        path.write_text("model: {path: m}\ndata: {sources: [a.jsonl]}\ntrain: {steps: 9}\n")
        return load_config(path, [f"data.{key}={json.dumps(value)}" for key, value in data] + train.split())

    return run


REFUSED = {
    "data.sources[0] has weight and token_share": [
        ("sources", weighted({"weight": 1, "token_share": 0.1}, {"weight": 1}))],
    "data.sources[1] has neither weight nor token_share, and other sources do": [
        ("sources", weighted({"weight": 1}, {}))],
    "data.sources[0].max_epochs is set, but no source has a weight": [("sources", weighted({"max_epochs": 2}, {}))],
    "the token shares add up to 1": [("sources", weighted({"weight": 1}, {"token_share": 1.0}))],
    "the token shares add up to 0.9": [("sources", weighted({"token_share": 0.5}, {"token_share": 0.4}))],
    "data.schedule changes weights, and no source has one": [
        ("sources", [A, B]), ("schedule", [{"step": 3, "weights": [1, 0]}])],
    "data.schedule[0] has 1 weights for 2 sources": [
        ("sources", weighted({"weight": 1}, {"weight": 2})), ("schedule", [{"step": 3, "weights": [1]}])],
    "data.schedule[0] leaves out every source": [
        ("sources", weighted({"weight": 1}, {"weight": 2})), ("schedule", [{"step": 3, "weights": [0, 0]}])],
    "data.schedule[1].step is 3, after 5": [
        ("sources", weighted({"weight": 1}, {"weight": 2})),
        ("schedule", [{"step": 5, "weights": [1, 0]}, {"step": 3, "weights": [1, 1]}])],
    "data.order.pacing opens easy rows first, and data.order.kind is shuffle": [("order", {"pacing": {}})],
    "data.order.domain is a setting of interleaved": [("order", {"kind": "staged", "domain": "x"})],
    "data.order.stages names a stage twice": [("order", {"kind": "staged", "stages": ["a", "a"]})],
    "the token shares add up to 0.5": [("sources", weighted({"token_share": 0.5}, {"weight": 0}))],
    "data.schedule[0].step is 9, and the run has 9 steps": [
        ("sources", weighted({"weight": 1}, {"weight": 2})), ("schedule", [{"step": 9, "weights": [1, 1]}])],
    "data.order.by and stages say how hard rows are, and data.order.kind is shuffle": [("order", {"by": "level"})],
    "every source has weight 0": [("sources", weighted({"weight": 0}))],
    "data.sources.0.weight is -1": [("sources", weighted({"weight": -1}))],
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_contradiction_is_refused_with_a_way_out(load, what):
    with pytest.raises(ConfigError) as caught:
        load(*REFUSED[what])
    assert what in str(caught.value) and "fix: " in str(caught.value)


def test_a_pack_that_is_padded_must_hold_the_longest_sample(load):
    with pytest.raises(ConfigError, match=r"make train.tokens_per_pack a multiple of 768"):
        load(("context_length", 8000), train="train.tokens_per_pack=8192 train.pad_to_multiple_of=768")
    load(("context_length", 8000), train="train.tokens_per_pack=8448 train.pad_to_multiple_of=768")


def test_who_encodes_and_where_it_is_kept_may_change_on_resume_and_the_mixture_may_not(load):
    sources = ("sources", weighted({"weight": 1}, {"weight": 2}))
    before = learned(load(sources))
    execution = "service.encoders=4 service.prefetch=9 service.budget=99999 service.stall=3 train.pad_to_multiple_of=64"
    assert (
        changed_keys(before, learned(load(sources, ("cache", "/elsewhere"), ("cache_size", 5), train=execution))) == []
    )
    changed = load(("sources", weighted({"weight": 1}, {"weight": 3})), ("schedule", [{"step": 3, "weights": [1, 0]}]))
    said = changed_keys(before, learned(changed))
    assert said[0] == "data.sources.1.weight was 2.0, is 3.0"
    assert any(line.startswith("data.schedule") for line in said[1:])


def test_the_cache_is_where_the_environment_says(load, monkeypatch):
    monkeypatch.setenv("DIST_SFT_CACHE", "/scratch/x")
    assert load().data.cache == "/scratch/x"
    monkeypatch.delenv("DIST_SFT_CACHE")
    assert load().data.cache == "~/.cache/dist_sft"


def test_a_setting_that_is_newer_than_a_run_is_remembered_only_where_it_says_something(load):
    plain, mapped = ({"path": "a.jsonl", **more} for more in ({}, {"columns": {"prompt": "q", "completion": "a"}}))
    before, after = (learned(load(("sources", [source]))) for source in (plain, mapped))
    assert "columns" not in before["data"]["sources"][0]
    assert changed_keys(before, after)[0].startswith("data.sources.0.columns.prompt was not set, is ")


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"])
def test_the_template_is_not_told_what_the_rows_decide(name):
    with pytest.raises(ConfigError, match=f"data.template_kwargs is .*, not a section without {name}, which the rows"):
        RunConfig.model_validate(
            {"model": {"path": "m"}, "train": {"steps": 1}, "data": {"sources": ["a"], "template_kwargs": {name: []}}}
        )
