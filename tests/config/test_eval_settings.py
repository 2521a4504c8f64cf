"""Settings of the rows that a run is judged by."""

import json

import pytest

from dist_sft.config.learned import changed_keys, learned
from dist_sft.config.load import load_config
from dist_sft.config.resolve import resolved
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError

MATH, CODE = {"name": "math", "path": "m.jsonl"}, {"name": "code", "path": "c.jsonl"}


@pytest.fixture
def load(tmp_path):
    def run(**evaluation):
        path = tmp_path / "run.yaml"
        path.write_text("model: {path: m}\ndata: {sources: [a.jsonl]}\ntrain: {steps: 9}\n")
        return load_config(path, [f"eval.{key}={json.dumps(value)}" for key, value in evaluation.items()])

    return run


def test_one_source_is_a_list_of_one(load):
    for evaluation in ({"source": "test.jsonl"}, {"sources": ["test.jsonl"]}, {"sources": "test.jsonl"}):
        config = load(**evaluation)
        assert [source.path for source in config.eval.given.values()] == ["test.jsonl"] == list(config.eval.names)
    assert load().eval.names == () and load(share=0.1).eval.names == ("held_out",)


def test_sources_are_told_by_their_names_else_by_their_paths_without_secrets(load):
    config = load(sources=[MATH, "s3://user:hush@bucket/c.jsonl", "hub:openai/gsm8k"], share=0.02)
    assert config.eval.names == ("math", "s3://<hidden>@bucket/c.jsonl", "hub:openai/gsm8k train", "held_out")
    assert RunConfig.model_validate(resolved(config)) == config


REFUSED = {
    "both eval.source and eval.sources are set": {"source": "a", "sources": [MATH]},
    "eval.decides is 'maths', and no source of held-out rows is called so\n  fix: use math or code or held_out": {
        "sources": [MATH, CODE], "share": 0.1, "decides": "maths"},
    "eval.decides is 'math', and no source of held-out rows is called so\n  fix: set eval.sources": {"decides": "math"},
    "two sources of held-out rows are called 'math'": {"sources": [MATH, {"name": "math", "path": "other.jsonl"}]},
    "two sources of held-out rows are called 'x.jsonl'": {"sources": ["x.jsonl", {"path": "x.jsonl", "split": "test"}]},
    "called 'held_out', which is what the rows of eval.share are called": {
        "source": {"name": "held_out", "path": "a"}, "share": 0.1},
    "eval.sources.1.weight says how training rows are mixed": {"sources": [MATH, CODE | {"weight": 2}]},
    "eval.source.max_epochs says how training rows are mixed": {"source": {"path": "a", "max_epochs": 2}},
    "eval.share is 0, not a number above 0": {"share": 0},
    "eval.share is 1.0, not a number below 1": {"share": 1.0},
    "eval.patience is set, but eval.source is not, nor sources or share": {"patience": 2},
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_contradiction_is_refused_with_a_way_out(load, what):
    with pytest.raises(ConfigError) as caught:
        load(**REFUSED[what])
    assert what in str(caught.value), caught.value


@pytest.mark.parametrize("evaluation", [{"sources": [MATH], "patience": 1}, {"share": 0.1, "patience": 1}])
def test_any_held_out_rows_will_do_for_patience(load, evaluation):
    assert load(**evaluation).eval.patience == 1


def test_what_is_held_out_and_what_decides_may_not_change_on_resume_and_the_rest_only_without_patience(load):
    plain, shared = (learned(load(source="a.jsonl", **more)) for more in ({}, {"share": 0.1}))
    assert "eval" not in plain
    assert changed_keys(plain, shared) == ["eval.share was not set, is 0.1"]
    assert changed_keys(shared, learned(load(sources=[MATH, CODE], every=7, share=0.1))) == []
    decided = learned(load(sources=[MATH, CODE], share=0.1, decides="code"))
    assert changed_keys(shared, decided) == ["eval.decides was not set, is 'code'"]
    patient = learned(load(source="a.jsonl", patience=3))
    assert patient["eval"].keys() == {"source", "every", "samples", "patience", "min_delta"}, "what runs of before have"
    assert "name" not in patient["eval"]["source"]
    assert changed_keys(patient, learned(load(sources=[MATH], patience=3)))
