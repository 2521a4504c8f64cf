"""Settings are checked each and together, in a file or out of it, and all that is wrong is said at once."""

from pathlib import Path
from typing import ClassVar

import pytest

from dist_sft.config.load import load, load_config
from dist_sft.config.problems import Problem
from dist_sft.config.resolve import resolved
from dist_sft.config.root import Root
from dist_sft.config.run_config import RunConfig
from dist_sft.config.section import Section
from dist_sft.core.errors import ConfigError

VALUES = {
    "model": {"path": "models/tiny", "tuning": {"kind": "lora", "rank": 8}},
    "data": {"sources": ["a.jsonl"]},
    "train": {"epochs": 2, "preset": "lora"},
}
WRONG = {
    "model": {"path": "models/tiny"},
    "data": {"sources": ["a.jsonl"], "context_length": 4096},
    "train": {"tokens_per_pack": 2048, "preset": "lora"},
}


def refused(values, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(values, overrides)
    return str(caught.value)


def test_a_mapping_is_a_run_like_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: {path: models/tiny, tuning: {kind: lora, rank: 8}}\ndata: {sources: [a.jsonl]}\n"
        "train: {epochs: 2, preset: lora}\n"
    )
    assert load_config(VALUES) == load_config(tmp_path / "run.yaml") == load_config(str(tmp_path / "run.yaml"))
    assert load_config(VALUES).train.learning_rate == 5e-5, "what the preset of a mapping fills in is filled in"
    assert load_config(VALUES, ["train.epochs=3"]).train.epochs == 3
    assert (
        load_config(VALUES | {"model": {"path": Path("models/tiny")}, "train": {"steps": 1}}).model.path
        == "models/tiny"
    )


def test_a_mapping_with_three_contradictions_is_refused_with_all_three_and_their_fixes():
    said = refused(WRONG)
    assert said.startswith("3 problems in the run file\n") and said.count("  fix: ") == 3
    assert "values: neither train.epochs nor train.steps is set\n  fix: set one" in said
    assert "values: data.context_length is 4096, more than train.tokens_per_pack, 2048" in said
    assert "values: train.preset is lora, and model.tuning.kind is full" in said


@pytest.mark.parametrize("make", [RunConfig.model_validate, lambda values: RunConfig.of(_document(values))])
def test_there_is_no_way_to_an_unchecked_run(make):
    with pytest.raises(ConfigError, match="3 problems"):
        make(WRONG)
    config = make(VALUES)
    assert config.train.learning_rate == 5e-5 and RunConfig.model_validate(resolved(config)) == config
    with pytest.raises(ConfigError, match=r"neither train\.epochs nor train\.steps is set"):
        config.model_copy(update={"train": config.train.model_copy(update={"epochs": None})})
    with pytest.raises(ConfigError, match=r"neither train\.epochs nor train\.steps is set"):
        RunConfig(model=config.model, data=config.data, train=config.train.model_copy(update={"epochs": None}))


def _document(values):
    from dist_sft.config.root import from_values

    return from_values(values)


def test_the_constructor_refuses_a_preset_that_would_be_ignored():
    config = load_config(VALUES)
    with pytest.raises(ConfigError, match=r"train\.preset is lora, and what it fills in .*learning_rate"):
        RunConfig(model=config.model, data=config.data, train={"epochs": 2, "preset": "lora"})


def test_an_unknown_key_hides_no_contradiction_behind_it(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: {path: m, colour: red}\ndata: {sources: [a], context_length: 4096}\ntrain: {tokens_per_pack: 2048}\n"
    )
    said = refused(tmp_path / "run.yaml")
    assert said.startswith("3 problems in the run file\n")
    assert "run.yaml:1: model.colour is not a setting" in said
    assert "run.yaml:3: neither train.epochs nor train.steps is set" in said
    assert "run.yaml:3: data.context_length is 4096, more than train.tokens_per_pack" in said


@pytest.mark.parametrize(
    ("override", "problems"),
    [
        ("train.setps=5", 1),  # meant as train.steps: that neither is set is no problem of its own
        ("train.steps=many", 1),
        ("train.epochs=-1", 1),
        ("steps=5", 1),  # belongs under train
        ("train.colour=red", 2),
        ("train.min_learning_rate=low", 2),
        ("train.tokens_per_pack=many", 2),  # whether the context fits in is not known
        ("model.tuning={kind: lroa}", 2),
    ],
)
def test_what_a_wrong_setting_may_have_been_is_held_against_nobody(override, problems):
    said = refused(WRONG | {"data": {"sources": ["a"]}, "train": {}}, override)
    assert len(said.split("\n  fix: ")) - 1 <= problems
    assert said.startswith(f"{problems} problems" if problems > 1 else "override"), said


def test_wrong_items_of_a_list_hide_no_contradiction_and_make_none_up():
    sources = [{"path": "a", "weight": "much"}, {"path": "b"}, {"path": "c", "weight": 1, "token_share": 0.5}]
    said = refused(VALUES | {"data": {"sources": sources}, "eval": {"patience": 3}})
    assert "data.sources.0.weight is 'much', not a number" in said
    assert "eval.patience is set, but eval.source is not" in said


def test_what_is_no_setting_in_a_mapping_is_refused_by_its_type():
    assert "a set is not a setting" in refused(VALUES | {"run": {"name": {"a"}}})


class Filter(Section):
    """One filter of the file below."""

    path: str
    least: int = 0
    most: int = 10


def _bounds(file):
    for i, one in enumerate(file.filters):
        if one.least > one.most:
            yield Problem(("filters", i, "least"), f"filters[{i}].least is {one.least}, above most, {one.most}", "swap")


class CurateFile(Root):
    """A file of another kind."""

    file = "the curation file"
    checks: ClassVar = (_bounds,)
    filters: tuple[Filter, ...]
    name: str = "x"


def test_any_kind_of_file_gets_the_same_errors(tmp_path):
    path = tmp_path / "curate.yaml"
    path.write_text("filters:\n  - {path: a, least: 3}\n")
    assert load(CurateFile, path, ["filters.0.most=4"]).filters[0].most == 4
    path.write_text("nmae: y\nfilters:\n  - {path: a, least: 3, most: 1}\n  - {path: b, least: few}\n")
    with pytest.raises(ConfigError) as caught:
        load(CurateFile, path)
    said = str(caught.value)
    assert said.startswith("3 problems in the curation file\n")
    assert "curate.yaml:1: nmae is not a setting\n  fix: did you mean 'name'?" in said
    assert "curate.yaml:4: filters.1.least is 'few', not a whole number" in said
    assert "curate.yaml:3: filters[0].least is 3, above most, 1\n  fix: swap" in said
    with pytest.raises(ConfigError, match="no such curation file"):
        load(CurateFile, tmp_path / "none.yaml")
    path.write_text("")
    with pytest.raises(ConfigError, match="the curation file is empty\n  fix: it needs at least filters"):
        load(CurateFile, path)
