"""The copy of a run file is the file itself, but for what is hidden everywhere; and such a copy is no run file."""

from pathlib import Path

import pytest
import yaml

from dist_sft.config.document import parse_yaml
from dist_sft.config.kept import RunFile, masked
from dist_sft.config.load import load_config, load_run
from dist_sft.core.errors import ConfigError

PLAIN = """\
# the run of the paper; do not change
# key: value pairs; tokens: many; the password: ask
train: {epochs: 2,   learning_rate: 1e-5}   # *** as in the first one ***

model:
    path: 'Qwen/Qwen3-8B'

data:
  sources: [a.jsonl, "s3://bucket/b.jsonl"]    # two of them: see https://example.com/data
"""
SECRET = """\
# what we had: s3://AKIA:in-a-comment@bucket/x
# api_key: commented-out
run: {name: x}
data:
  sources:
    - {path: "s3://AKIA:in-quotes@bucket/a.jsonl?sig=in-a-query&region=eu", weight: 3}   # the first
    - https://me:plain-one@host/b.jsonl#t=in-a-fragment
    - path: |
        s3://me:in-a-block@bucket/c
tracking:
  api_key: &k anchored-secret   # anchored-secret is mine
  other: {token: *k, password: 'it''s-quoted', cookie: [in-a-list, {b: in-a-section}]}
  secret: >
    folded-secret
    text
  base: &base {jwt: merged-secret, mode: b}
  more: {<<: *base, mode: c}
"""
SECRETS = (
    "in-a-comment", "commented-out", "in-quotes", "in-a-query", "plain-one", "in-a-fragment", "in-a-block",
    "anchored-secret", "s-quoted", "in-a-list", "in-a-section", "folded-secret", "merged-secret",
)  # fmt: skip


def kept(text):
    return RunFile(Path("run.yaml"), text, parse_yaml(text.removeprefix("\ufeff"), "run.yaml").value)


@pytest.mark.parametrize("text", [PLAIN, PLAIN.replace("\n", "\r\n"), f"\ufeff{PLAIN}", PLAIN.rstrip(), PLAIN + "\n\n"])
def test_a_run_file_without_secrets_is_kept_byte_for_byte(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode())
    file = load_run(path, ["train.epochs=3"])[1]
    assert file.path == path and file.without_secrets().encode() == text.encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_of_one_with_secrets_only_these_are_hidden(end):
    text = SECRET.replace("\n", end)
    made = kept(text).without_secrets()
    assert not [secret for secret in SECRETS if secret in made]
    assert parse_yaml(made, "run.yaml").value == masked(kept(text).value)
    for line in ("run: {name: x}", "data:",
                 "  more: {<<: *base, mode: '***'}", "  base: &base {jwt: '***', mode: '***'}",
                 "  api_key: &k '***'   # *** is mine", "    - https://***@host/b.jsonl#***",
                 '    - {path: "s3://***@bucket/a.jsonl?sig=***&region=eu", weight: 3}   # the first'):  # fmt: skip
        assert line in made.split(end)


def test_a_text_that_cannot_be_mended_in_place_is_written_anew(monkeypatch):
    monkeypatch.setattr("dist_sft.config.kept._spots", lambda *_: [(0, 1, "x")])
    made = kept("a: {api_key: xyz}\n").without_secrets()
    assert yaml.safe_load(made) == {"a": {"api_key": "***"}}


def test_a_copy_with_hidden_values_is_no_run_file_until_they_are_filled_in(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(PLAIN.replace("s3://", "s3://***@").replace("'Qwen/Qwen3-8B'", '"***"'))
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value) == (
        "2 problems in the run file\n"
        f"{path}:6: model.path is hidden (***)\n  fix: write the value there, or give it as an override of that key\n"
        f"{path}:9: data.sources.1.path is hidden (***)\n  fix: write the value there, or give it as an override of "
        "that key"
    )
    assert load_config(path, ["model.path=m", "data.sources.1.path=b"]).data.sources[1].path == "b"


@pytest.mark.parametrize("name", ["a ***", "***bold***", "s3/***"])
def test_stars_in_a_name_hide_nothing(name):
    values = {"run": {"name": name}, "model": {"path": "m"}, "data": {"sources": ["a"]}, "train": {"steps": 1}}
    assert load_config(values).run.name == name
