"""A preset fills in what the run file leaves open, and nothing else."""

from pathlib import Path

import pytest

from dist_sft.config.document import parse_yaml
from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.load import load_config
from dist_sft.config.overrides import apply_overrides
from dist_sft.config.presets import PRESETS, apply_preset
from dist_sft.config.resolve import resolved, resolved_yaml
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError

RUN = """\
model: {path: models/tiny}
data: {sources: [a.jsonl]}
train:
  epochs: 2
  preset: full
"""
LORA = "model.tuning={kind: lora}"


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text=RUN):
        Path("run.yaml").write_text(text)
        return "run.yaml"

    return write


def filled(path, *overrides):
    train = load_config(path, overrides).train
    return train.learning_rate, train.schedule, train.warmup, train.optimizer.weight_decay


def test_each_preset_fills_in_its_recipe(run_file):
    path = run_file()
    assert filled(path) == (5e-6, "linear", 0.03, 0.0)
    assert filled(path, "train.preset=lora", LORA) == (5e-5, "linear", 0.03, 0.0)
    assert filled(path, "train.preset=distill") == (1e-5, "cosine", 0.1, 0.0)
    assert filled(path, "train.preset=none") == filled(run_file(RUN.replace("  preset: full\n", "")))


def test_a_lora_preset_has_ten_times_the_rate_of_a_full_one(run_file):
    path = run_file()
    assert filled(path, "train.preset=lora", LORA)[0] == pytest.approx(10 * filled(path)[0])
    assert filled(path, "train.preset=distill", LORA)[0] == pytest.approx(10 * filled(path, "train.preset=distill")[0])


def test_what_the_user_sets_stays(run_file):
    path = run_file(RUN + "  schedule: constant\n  optimizer: {weight_decay: 0.1, betas: [0.9, 0.95]}\n")
    assert filled(path, "train.learning_rate=3e-6") == (3e-6, "constant", 0.03, 0.1)
    assert load_config(path).train.optimizer.betas == (0.9, 0.95)
    assert filled(path, "train.preset=distill", "train.warmup=7") == (1e-5, "constant", 7, 0.1)


def test_a_preset_changes_only_what_it_says(run_file):
    path = run_file()
    with_preset, without = resolved(load_config(path)), resolved(load_config(path, ["train.preset=none"]))
    changed = {key for key in with_preset["train"] if with_preset["train"][key] != without["train"][key]}
    assert changed == {"preset", "learning_rate", "schedule"}
    assert {path[1] for recipe in PRESETS.values() for path in recipe} >= changed - {"preset"}
    assert all(with_preset[section] == without[section] for section in with_preset if section != "train")


def test_the_resolved_config_shows_the_values_and_loads_again_as_itself(run_file):
    config = load_config(run_file(), ["train.preset=distill"])
    assert resolved(config)["train"]["learning_rate"] == 1e-5
    assert load_config(run_file(resolved_yaml(config))) == config
    assert RunConfig.model_validate(resolved(config)) == config


def test_a_filled_value_is_placed_at_the_preset_and_a_set_one_where_it_stands():
    document = apply_preset(parse_yaml(RUN + "  warmup: 7\n", "run.yaml"))
    assert document.where(("train", "learning_rate")) == "run.yaml:5"
    assert document.where(("train", "optimizer", "weight_decay")) == "run.yaml:5"
    assert document.where(("train", "warmup")) == "run.yaml:6" and document.value["train"]["warmup"] == 7
    overridden = apply_preset(apply_overrides(document, ["train.preset=distill"]))
    assert overridden.where(("train", "preset")) == "override 'train.preset=distill'"


def test_a_problem_that_comes_of_a_filled_value_is_refused_where_the_other_value_stands(run_file):
    with pytest.raises(ConfigError) as caught:
        load_config(run_file(RUN + "  min_learning_rate: 1\n"))
    assert str(caught.value).startswith("run.yaml:6: train.min_learning_rate is 1, above learning_rate, 5e-06")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.preset=loar", "is 'loar', not one of none, full, lora, distill\n  fix: did you mean 'lora'?"),
        ("train.preset=lora", "override 'train.preset=lora': train.preset is lora, and model.tuning.kind is full"),
        (LORA, "run.yaml:5: train.preset is full, and model.tuning.kind is lora"),
        ("train.optimizer=5", "override 'train.optimizer=5': train.optimizer is 5, not a section of key: value"),
        ("train=5", "override 'train=5': train is 5, not a section of key: value"),
        ("train.preset=[1]", "train.preset is [1]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_still_said_in_its_place(run_file, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(run_file(), [override])
    assert message in str(caught.value)


def test_a_resumed_run_is_compared_by_values_and_not_by_the_preset_that_filled_them(run_file):
    path = run_file()
    before = learned(load_config(path))
    written_out = ["train.preset=none", "train.learning_rate=5e-6", "train.schedule=linear"]
    assert changed_keys(before, learned(load_config(path, written_out))) == []
    assert changed_keys(before, learned(load_config(path, ["train.preset=distill"]))) == [
        "train.learning_rate was 5e-06, is 1e-05",
        "train.schedule was 'linear', is 'cosine'",
        "train.warmup was 0.03, is 0.1",
    ]
