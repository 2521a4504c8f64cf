"""A run file is read as people mean it, and refused with its lines where it cannot be."""

from pathlib import Path

import pytest

from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.load import load_config
from dist_sft.config.resolve import resolved, resolved_yaml
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import LoraTuning
from dist_sft.core.errors import ConfigError

GOOD = """\
model:
  path: models/tiny
  tuning: {kind: lora, rank: 64}
data:
  sources:
    - a.jsonl
    - {path: b.json, format: alpaca}
train:
  epochs: 2
  learning_rate: 1e-5
eval:
  source: held_out.jsonl
"""


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    """Writes run.yaml into the current folder, and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "run.yaml"

    return write


def refused(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_run_file_becomes_a_config(run_file):
    config = load_config(run_file(GOOD))
    assert config.model.tuning == LoraTuning(kind="lora", rank=64)
    assert [source.path for source in config.data.sources] == ["a.jsonl", "b.json"]
    assert config.eval.source is not None and config.eval.source.path == "held_out.jsonl"
    assert config.train.epochs == 2


def test_a_number_with_an_exponent_is_a_number(run_file):
    assert load_config(run_file(GOOD)).train.learning_rate == 1e-5
    assert load_config(run_file(GOOD), ["train.learning_rate=3e-4"]).train.learning_rate == 3e-4
    assert load_config(run_file(GOOD), ["train.learning_rate=1E5"]).train.learning_rate == 1e5


def test_words_that_yaml_1_1_takes_for_other_things_stay_text(run_file):
    for word in ("no", "on", "2024-01-01", "12:30"):
        assert load_config(run_file(GOOD), [f"run.name={word}"]).run.name == word
    assert load_config(run_file(GOOD), ["run.seed=010"]).run.seed == 10


def test_overrides_reach_lists_unions_and_missing_sections(run_file):
    path = run_file(GOOD)
    config = load_config(
        path,
        [
            "data.sources.0.path=c.jsonl",
            "model.tuning.rank=8",
            "tracking.wandb.project=p",
            "data.role_names.bot=assistant",
        ],
    )
    assert config.data.sources[0].path == "c.jsonl"
    assert config.data.sources[1].path == "b.json"
    assert config.model.tuning == LoraTuning(kind="lora", rank=8)
    assert config.tracking.wandb is not None and config.tracking.wandb.project == "p"
    assert config.data.role_names == {"bot": "assistant"}
    assert load_config(path, ["model.tuning={kind: full}"]).model.tuning.kind == "full"
    assert [s.path for s in load_config(path, ["data.sources=only.csv"]).data.sources] == ["only.csv"]
    assert [s.path for s in load_config(path, ["data.sources.2=c.csv"]).data.sources] == ["a.jsonl", "b.json", "c.csv"]
    assert load_config(path, ["run.name=a=b"]).run.name == "a=b"


def test_the_last_override_wins(run_file):
    assert load_config(run_file(GOOD), ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_an_anchor_is_written_once_and_used_twice(run_file):
    text = GOOD.replace("  epochs: 2", "  <<: &base {epochs: 2, samples_per_step: 7}\n  samples_per_step: 8")
    assert load_config(run_file(text)).train.samples_per_step == 8


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_name(run_file):
    text = GOOD.replace("{kind: lora, rank: 64}", "\n    kind: lora\n    rnak: 64")
    assert refused(run_file(text)) == "run.yaml:5: model.tuning.rnak is not a setting\n  fix: did you mean 'rank'?"


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(run_file):
    assert refused(run_file(GOOD + "learning_rate: 1\n")) == (
        "run.yaml:13: learning_rate is not a setting\n  fix: learning_rate belongs under train"
    )
    assert "fix: context_length belongs under data" in refused(run_file(GOOD), "train.context_length=4096")
    assert "model.tuning.rank is not a setting\n  fix: rank belongs to kind: lora" in refused(
        run_file(GOOD), "model.tuning={kind: full, rank: 8}"
    )


def test_a_misspelt_section_is_named(run_file):
    assert "trian is not a setting\n  fix: did you mean 'train'?" in refused(run_file(GOOD.replace("train:", "trian:")))


def test_an_unknown_override_is_located_at_the_override(run_file):
    assert refused(run_file(GOOD), "train.foo=1").startswith(
        "override 'train.foo=...': train.foo is not a setting\n  fix: "
    )
    assert refused(run_file(GOOD), "model.tuning.rank=x").startswith(
        "override 'model.tuning.rank=x': model.tuning.rank is 'x', not a whole number"
    )


def test_all_problems_are_reported_at_once(run_file):
    text = GOOD.replace("epochs: 2", "epochs: -2\n  schedule: cosin").replace("rank: 64", "rank: many")
    message = refused(run_file(text))
    assert message.startswith("3 problems in the run file\n")
    assert "run.yaml:3: model.tuning.rank is 'many', not a whole number" in message
    assert "run.yaml:9: train.epochs is -2, not a number above 0" in message
    assert "run.yaml:10: train.schedule is 'cosin', not one of cosine, linear, constant, wsd" in message
    assert "fix: did you mean 'cosine'?" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=two", "train.epochs is 'two', not a number"),
        ("train.samples_per_step=1.5", "train.samples_per_step is 1.5, not a whole number"),
        ("train.samples_per_step=1e3", "write 1000"),
        ("train.samples_per_step=true", "train.samples_per_step is true, not a whole number"),
        ("train.samples_per_step='8'", "train.samples_per_step is '8', not a whole number\n  fix: write it without quotes"),  # noqa: E501
        ("train.learning_rate=.nan", "train.learning_rate is NaN, not a finite number"),
        ("train.packing=yes", "train.packing is 'yes', not true or false"),
        ("train.optimizer.betas=[0.9]", "train.optimizer.betas"),
        ("train.optimizer.betas=[0.9, 1.0]", "train.optimizer.betas.1 is 1.0, not a number below 1"),
        ("run.name=5", "run.name is 5, not text\n  fix: write \"5\" with quotes"),
        ("model.tuning.targets=5", "model.tuning.targets is 5, not text or a list"),
        ("model.tuning={kind: lroa}", "model.tuning.kind is 'lroa', not one of full, lora\n  fix: did you mean 'lora'?"),  # noqa: E501
        ("model.tuning={rank: 8}", "model.tuning.kind is missing\n  fix: add kind: one of full or lora"),
        ("data.role_names.bot=helper", "data.role_names.bot is 'helper', not one of system, user, assistant, tool"),
        ("data.loss.roles.gpt=1", "data.loss.roles.gpt is 'gpt', not one of system, user, assistant, tool"),
        ("data.sources=[]", "data.sources is empty"),
        ("data.sources=5", "data.sources.0 is 5, not a section of key: value"),
        ("model.path=", "model.path is null, not text"),
        ("model=5", "model is 5, not a section of key: value"),
        ("data.sources.7=x", "data.sources has 2 entries, and no entry 7\n  fix: use 0 to 2"),
        ("run.seed.x=1", "override 'run.seed.x=...': run.seed is a section, not a whole number"),
        ("model.path.x=1", "override 'model.path.x=...': model.path is a single value, which has no parts"),
        ("novalue", "override 1: not key=value\n  fix: write e.g. train.learning_rate=1e-5"),
        ("a..b=1", "not key=value"),
        ("model.tuning={kind: lora", "override 'model.tuning=...': not YAML"),
    ],
)  # fmt: skip
def test_a_bad_value_says_in_plain_words_what_is_allowed(run_file, override, message):
    assert message in refused(run_file(GOOD), override)


def test_a_missing_setting_is_described(run_file):
    assert refused(run_file(GOOD.replace("  path: models/tiny\n", ""))) == (
        "run.yaml:1: model.path is missing\n  fix: add model.path: hub id or folder"
    )


def test_a_key_that_stands_twice_is_refused(run_file):
    assert refused(run_file(GOOD + "train:\n  steps: 3\n")) == (
        "run.yaml:13: train stands twice, first on line 8\n  fix: remove one of them"
    )


def test_a_tab_is_named_as_a_tab(run_file):
    assert refused(run_file("model:\n\tpath: x\n")) == (
        "run.yaml:2: a tab where YAML wants spaces\n  fix: indent with spaces"
    )


def test_broken_yaml_is_refused_at_its_line(run_file):
    assert refused(run_file("model:\n  path: [x\ntrain: 1\n")).startswith("run.yaml:3: not YAML: ")


def test_a_file_that_is_no_mapping_is_refused(run_file):
    assert refused(run_file("- a\n- b\n")).startswith("run.yaml:1: a list, not sections of key: value")
    assert refused(run_file("hello\n")).startswith("run.yaml:1: a single value, not sections")


def test_an_empty_file_is_refused(run_file):
    assert refused(run_file("")).startswith("run.yaml: the run file is empty\n  fix: it needs at least model, data")
    assert refused(run_file("# nothing\n")).startswith("run.yaml: the run file is empty")


def test_invalid_utf_8_is_refused_at_its_line(run_file):
    assert refused(run_file(b"model:\n  path: caf\xe9\n")) == "run.yaml:2: not UTF-8\n  fix: save the file as UTF-8"


def test_a_missing_run_file_names_those_that_are_there(run_file):
    run_file(GOOD)
    assert refused("rum.yaml") == "rum.yaml: no such run file\n  fix: there are run.yaml in ."


def test_an_unreadable_run_file_is_refused(tmp_path):
    assert "the run file cannot be read: Is a directory" in refused(str(tmp_path))


def test_an_anchor_inside_itself_is_refused(run_file):
    assert "run.yaml:1: an anchor (&) contains itself" in refused(run_file("model: &a\n  path: *a\n"))


def test_settings_that_contradict_one_another_are_refused_at_their_lines(run_file):
    path = run_file(GOOD)
    assert refused(path, "train.steps=5").startswith(
        "override 'train.steps=5': both train.epochs and train.steps are set"
    )
    assert refused(path, "train.epochs=null").startswith("run.yaml:8: neither train.epochs nor train.steps is set")
    assert "data.context_length is 16384, more than train.tokens_per_pack, 8192" in refused(
        path, "data.context_length=16384"
    )
    assert "eval.patience is set, but eval.source is not" in refused(path, "eval={patience: 3}")
    assert "service.encoders is 0: there are none" in refused(path, "service={encoders: 0, resource: encoder}")
    assert "train.min_learning_rate is 1, above learning_rate, 1e-05" in refused(path, "train.min_learning_rate=1")
    assert "train.warmup is 10 steps, of 5 in all" in refused(path, "train={steps: 5, warmup: 10}")
    assert "0.5 and 0.6 of all steps: more than all" in refused(
        path, "train={steps: 5, schedule: wsd, warmup: 0.5, decay: 0.6}"
    )
    assert "momentum is a setting of sgd, and the optimizer is adamw" in refused(path, "train.optimizer.momentum=0.9")
    eight = ("train.optimizer.name=adamw8bit", "cluster.gpus_per_worker=0")
    assert "adamw8bit, which computes on GPUs" in refused(path, *eight)
    assert "train.loss.kind is dft" in refused(path, "train.loss={kind: dft, label_smoothing: 0.1}")
    assert "varlen, a CUDA kernel" in refused(path, "model.attention=varlen", "cluster.gpus_per_worker=0")
    assert "dropout would leave parts of the base model out" in refused(
        path, "model.tuning={kind: lora, init: pissa, dropout: 0.1}"
    )
    assert "lm_head would have an adapter (model.tuning.targets) and be trained whole" in refused(
        path, "model.tuning={kind: lora, targets: [q_proj, lm_head], modules_to_save: [lm_head]}"
    )


def test_the_deepspeed_json_is_looked_for_here_then_beside_the_run_file_then_in_the_package(tmp_path, monkeypatch):
    beside, here = tmp_path / "configs", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
    (beside / "run.yaml").write_text(GOOD + "deepspeed: my.json\n")
    (beside / "my.json").write_text("{}")
    monkeypatch.chdir(here)
    assert load_config(beside / "run.yaml").deepspeed == str(beside / "my.json")
    (here / "my.json").write_text("{}")
    assert load_config(beside / "run.yaml").deepspeed == str(here / "my.json")
    shipped = load_config(beside / "run.yaml", ["deepspeed=ds_configs/zero2.json"]).deepspeed
    assert shipped == str(Path(__file__).parents[2] / "ds_configs" / "zero2.json")


def test_a_missing_deepspeed_json_lists_the_shipped_ones(run_file):
    message = refused(run_file(GOOD), "deepspeed=zero4.json")
    assert message.startswith(
        "override 'deepspeed=zero4.json': deepspeed is 'zero4.json', and there is no such file in "
    )
    assert "fix: use one of ds_configs/cpu_debug.json, ds_configs/zero2.json, ds_configs/zero3.json" in message


def test_deepspeed_may_stand_in_the_run_file_itself(run_file):
    config = load_config(run_file(GOOD), ["deepspeed={zero_optimization: {stage: 2}}"])
    assert config.deepspeed == {"zero_optimization": {"stage": 2}}


def test_the_resolved_config_loads_again_as_itself(run_file):
    config = load_config(run_file(GOOD), ["run.name='12'", "model.neftune={alpha: 1e-7}"])
    assert load_config(run_file(resolved_yaml(config))) == config
    assert RunConfig.model_validate(resolved(config)) == config


def test_execution_may_change_on_resume_and_what_is_learned_may_not(run_file):
    path = run_file(GOOD)
    before = learned(load_config(path))
    execution = ["cluster.workers=4", "train.tokens_per_pack=4096", "checkpoint.keep=9", "run.dir=elsewhere",
                 "model.gradient_checkpointing=true", "deepspeed=ds_configs/zero2.json", "eval.every=7",
                 "tracking.wandb.mode=offline"]  # fmt: skip
    assert changed_keys(before, learned(load_config(path, execution))) == []
    changed = ["train.learning_rate=2e-5", "model.tuning.rank=8", "data.sources.1.format=auto", "run.seed=3"]
    assert changed_keys(before, learned(load_config(path, changed))) == [
        "run.seed was 0, is 3",
        "model.tuning.rank was 64, is 8",
        "data.sources.1.format was 'alpaca', is 'auto'",
        "train.learning_rate was 1e-05, is 2e-05",
    ]


def test_a_setting_that_appears_or_goes_is_named(run_file):
    path = run_file(GOOD)
    old, new = learned(load_config(path)), learned(load_config(path, ["model.neftune={alpha: 5}"]))
    assert "model.neftune.alpha was not set, is 5.0" in changed_keys(old, new)
    assert "data.sources.1.format was 'alpaca', is not set" in changed_keys(
        old, learned(load_config(path, ["data.sources=a.jsonl"]))
    )


def test_evaluation_counts_as_learned_only_when_it_can_stop_the_run(run_file):
    path = run_file(GOOD)
    stopping = learned(load_config(path, ["eval.patience=3"]))
    assert changed_keys(stopping, learned(load_config(path, ["eval.patience=3", "eval.every=7"]))) == [
        "eval.every was 100, is 7"
    ]
