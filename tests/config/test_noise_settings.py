"""Settings of noise, dropout and decay are read as people mean them, and refused where they make no sense."""

from pathlib import Path

import pytest

from dist_sft.config.advice import warnings
from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.load import load_config
from dist_sft.config.noise import Depth
from dist_sft.config.resolve import resolved, resolved_yaml
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError

RUN = """\
model:
  path: models/tiny
  neftune:
    layers: {0: 5, 12: 2}
    schedule: {shape: cosine, warmup: 0.05, end: 0.1}
data: {sources: [a.jsonl]}
train: {steps: 20}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    return "run.yaml"


def test_noise_by_block_or_by_depth_is_read_and_loads_again_as_itself(path):
    by_block = load_config(path)
    assert by_block.model.neftune.layers == {"0": 5, "12": 2} and by_block.model.neftune.alpha is None
    by_depth = load_config(path, ["model.neftune.layers={shape: linear, first: 5}"])
    assert by_depth.model.neftune.layers == Depth(shape="linear", first=5, last=0)
    for config in (by_block, by_depth):
        Path("again.yaml").write_text(resolved_yaml(config))
        assert load_config("again.yaml") == config == RunConfig.model_validate(resolved(config))


def test_neftune_without_settings_has_the_strength_of_the_paper(path):
    assert load_config(path, ["model.neftune={}"]).model.neftune.alpha == 5
    assert load_config(path, ["model.neftune={distribution: gaussian, layers: null}"]).model.neftune.alpha == 5
    assert load_config(path, ["model.neftune=null"]).model.neftune is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.neftune.alpha=5", "model.neftune has alpha and layers, and layers says alpha by block"),
        ("model.neftune={alpha: null}", "model.neftune.alpha is null"),
        ("model.neftune.layers={}", "model.neftune.layers names no block"),
        ("model.neftune.layers={-1: 5}", "model.neftune.layers.-1 is '-1', not the number of a block, from 0"),
        ("model.neftune.layers={0: -5}", "model.neftune.layers.0 is -5, not a number of at least 0"),
        ("model.neftune.layers={0: x}", "model.neftune.layers.0 is 'x', not a number"),
        ("model.neftune.layers=5", "model.neftune.layers is 5, not a section of key: value"),
        ("model.neftune.layers={shape: linaer, first: 5}", "fix: did you mean 'linear'?"),
        ("model.neftune.layers={shpe: linear, first: 5}", "layers.shpe is not a setting\n  fix: did you mean 'shape'?"),
        ("model.neftune.layers={shape: constant, first: 5, last: 2}", "layers is constant, and last is 2, not first"),
        ("model.neftune={scale: row, where: answer}", "scale is row, as transformers' hook, which knows no where"),
        ("model.neftune.schedule={end: 0.1}", "schedule is constant, and end is 0.1: it does not fall"),
        ("model.neftune.schedule.warmup=30", "model.neftune.schedule.warmup is 30 steps, of 20 in all"),
        ("model.neftune.distribution=normal", "not one of uniform, gaussian, symmetric"),
        ("model.residual_dropout=1", "model.residual_dropout is 1, not a number below 1"),
        ("train.optimizer.decay=all", "decay is all, and train.optimizer.weight_decay is 0: nothing decays"),
        ("train.optimizer.decay_embeddings=false", "decay_embeddings is false, and train.optimizer.weight_decay is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_its_place(path, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    where = override if "shpe" not in override else "model.neftune.layers=..."
    assert message in str(caught.value) and f"override '{where}'" in str(caught.value)


def test_noise_on_prompts_is_refused_where_there_are_none(path):
    texts = ["data.sources=[{path: a.txt, format: text}]", "model.neftune.where=prompt"]
    with pytest.raises(ConfigError, match="all of a text is learned: there is no prompt"):
        load_config(path, texts)
    load_config(path, ["data.sources=[{path: a.txt, format: text}, b.jsonl]", "model.neftune.where=prompt"])


def test_packing_counts_as_learned_only_with_noise_that_depends_on_the_pack(path):
    """Else a resumed run could go on with other noise without a word."""
    execution = ["train.tokens_per_pack=16384", "train.packing=false", "train.micro_steps=2", "cluster.workers=2",
                 "train.pad_to_multiple_of=2"]  # fmt: skip
    row = ["model.neftune.scale=row"]
    assert changed_keys(learned(load_config(path)), learned(load_config(path, execution))) == []
    assert changed_keys(learned(load_config(path, row)), learned(load_config(path, row + execution))) == [
        "train.tokens_per_pack was 8192, is 16384",
        "train.packing was true, is false",
        "train.micro_steps was 1, is 2",
        "train.pad_to_multiple_of was 1, is 2",
        "cluster.workers was 1, is 2",
    ]


@pytest.mark.parametrize(
    "override",
    ["model.neftune.distribution=gaussian", "model.neftune.where=answer", "model.neftune.schedule.end=0.2",
     "model.neftune.layers.12=3", "model.residual_dropout=0.3", "train.optimizer.weight_decay=0.1"],
)  # fmt: skip
def test_every_setting_of_noise_and_dropout_is_learned(path, override):
    (change,) = changed_keys(learned(load_config(path)), learned(load_config(path, [override])))
    assert change.startswith(override.split("=")[0])


LORA = "model.tuning={kind: lora}"


@pytest.mark.parametrize(
    ("rate", "tuning", "expected"),
    [
        ("1e-5", None, None),
        ("1e-4", None, None),
        ("2e-4", None, "above what is usual with model.tuning.kind=full"),
        ("5e-8", None, "below what is usual with model.tuning.kind=full"),
        ("2e-4", LORA, None),
        ("5e-6", LORA, "below what is usual with model.tuning.kind=lora"),
        ("3e-3", LORA, "above what is usual with model.tuning.kind=lora"),
    ],
)
def test_a_learning_rate_far_outside_of_the_range_for_its_tuning_is_warned_of(path, rate, tuning, expected):
    found = warnings(load_config(path, [f"train.learning_rate={rate}", *([tuning] if tuning else [])]))
    assert len(found) == (expected is not None)
    assert expected is None or (expected in found[0] and "train.learning_rate is" in found[0])


def test_sgd_has_other_rates_and_no_preset_is_warned_of(path):
    assert warnings(load_config(path, ["train.optimizer.name=sgd", "train.learning_rate=0.1"])) == []
    for preset, more in (("full", []), ("lora", [LORA]), ("distill", []), ("distill", [LORA])):
        assert warnings(load_config(path, [f"train.preset={preset}", *more])) == []


def test_noise_that_depends_on_the_pack_is_warned_of(path):
    (found,) = warnings(load_config(path, ["model.neftune.scale=row"]))
    assert "depends on packing" in found


def test_a_watchdog_that_would_be_faster_than_the_data_service_heals_is_warned_of(path):
    (found,) = warnings(load_config(path, ["cluster.hang=20"]))
    assert found.startswith("cluster.hang is 20 and service.stall is 60: ") and found.endswith("less than 6.66667")
    assert warnings(load_config(path, ["cluster.hang=20", "service.stall=5"])) == []


def test_noise_on_answers_is_refused_where_prompts_have_a_loss_weight(path):
    weights = ["data.loss.roles={assistant: 1, user: 0.1}", "model.neftune.where=prompt"]
    with pytest.raises(ConfigError, match=r"data\.loss\.roles gives one to user: it would count as an answer"):
        load_config(path, weights)
