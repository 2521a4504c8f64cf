"""No secret leaves the machine with the config."""

import pytest

from dist_sft.config.redact import redacted, secret_keys
from dist_sft.config.run_config import RunConfig
from dist_sft.core.redact import redact_urls


def test_values_of_secret_keys_are_hidden():
    secret = {
        "api_key": "a",
        "WANDB_API_KEY": "b",
        "hf-token": "c",
        "clientSecret": "d",
        "password": "e",
        "x": {"key": "f"},
    }
    assert redacted(secret) == {
        "api_key": "<hidden>", "WANDB_API_KEY": "<hidden>", "hf-token": "<hidden>", "clientSecret": "<hidden>",
        "password": "<hidden>", "x": {"key": "<hidden>"},
    }  # fmt: skip


def test_settings_that_only_sound_like_secrets_stay():
    settings = {"tokens_per_pack": 8192, "keep": 2, "tokenizer": "x", "turns": ["all"], "key": None,
                "control_tokens": "parse"}  # fmt: skip
    assert redacted(settings) == settings


@pytest.mark.parametrize(("url", "shown"), [
    ("s3://me:pw@bucket/x.jsonl", "s3://<hidden>@bucket/x.jsonl"),
    ("s3://me:p/w@bucket/x.jsonl", "s3://<hidden>@bucket/x.jsonl"),
    ("s3://me:p#w?q@bucket/x.jsonl", "s3://<hidden>@bucket/x.jsonl"),
    ("s3://me:p@w@bucket/x.jsonl", "s3://<hidden>@bucket/x.jsonl"),
    ("https://ghp_abc@host.org/x", "https://<hidden>@host.org/x"),
    ("zip://x.jsonl::s3://me:pw@bucket/x.zip", "zip://x.jsonl::s3://<hidden>@bucket/x.zip"),
    ("simplecache::s3://me:pw@bucket/x", "simplecache::s3://<hidden>@bucket/x"),
    ("https://h.org/x?a=1&X-Amz-Signature=zz&token=t",
    "https://h.org/x?a=<hidden>&X-Amz-Signature=<hidden>&token=<hidden>"),
    ("https://h.org/x#access_token=abc", "https://h.org/x#<hidden>"),
    ("https://h.org/x?sig=a%2Fb&download=true", "https://h.org/x?sig=<hidden>&download=true"),
    ("https://h.org/x?download=ghp_abc%3D%2F", "https://h.org/x?download=<hidden>"),
    ("s3://me:cut-off", "s3://<hidden>"),
    ("postgres://me:12345/6@h.org/db", "postgres://<hidden>@h.org/db"),
    ("see http://u:p@h/ there", "see http://<hidden>@h/ there"),
])  # fmt: skip
def test_of_a_url_scheme_host_and_path_are_shown(url, shown):
    assert redact_urls(url) == shown
    assert redacted({"path": [url]}) == {"path": [shown]}


@pytest.mark.parametrize("url", [
    "data/train.jsonl", "s3://bucket/a@b/x.jsonl", "https://h.org:8080/a@b.jsonl",
    "hf://datasets/org/name@main/x.jsonl",
    "http://localhost:8000/x", "ray://head:10001", "http://[::1]:8000/x",
    "https://h.org/x.jsonl?download=true", "s3://b/x?versionId=3.a-b",
    "abfss://box@account.dfs.core.windows.net/x", "gs://bucket/x.jsonl?generation=17",
    "zip://x.jsonl::https://h.org/x.zip", "file:///home/me/x", "abfs://box/x", "10:30",
])  # fmt: skip
def test_a_url_without_a_secret_is_shown_whole(url):
    assert redact_urls(url) == url


@pytest.mark.parametrize("key", [
    "PGPASSWORD", "DB_PWD", "GITHUB_PAT", "jwt", "pass", "smtp_pass", "cookie", "Authorization", "sas", "SENTRY_DSN",
    "slack_webhook", "bearer", "privateKey", "signature", "aws_session_token", "passphrase", "OPENAI_KEY", "sessionId",
])  # fmt: skip
def test_a_key_that_sounds_like_a_secret_hides_its_value(key):
    assert redacted({key: "abc"}) == {key: "<hidden>"}


def test_what_is_hidden_can_be_named():
    value = {"tracking": {"api_key": "a", "mode": "b"}, "sources": [{"path": "x"}, {"path": "s3://me:pw@bucket"}]}
    assert secret_keys(value) == ["tracking.api_key", "sources.1.path"]
    assert secret_keys({"tokens_per_pack": 1, "path": "s3://bucket/x"}) == []


def test_no_setting_of_a_run_file_is_hidden():
    """What is hidden in run.json can be resumed by nobody."""
    config = RunConfig.model_validate(
        {"model": {"path": "m"}, "data": {"sources": [{"path": "a", "control_tokens": "text"}]}, "train": {"steps": 1},
         "eval": {"source": {"path": "b"}}, "tracking": {"wandb": {}}}
    )  # fmt: skip
    assert secret_keys(config.model_dump(mode="json")) == []


@pytest.mark.parametrize("text", [
    "models/hf_qwen3_checkpoint", "data/sk-learn-examples.jsonl", "s3://bucket/key=1/token=2/part-0.parquet",
    "hub:gsm8k@v1.0",
    "data/npm_packages.jsonl", "Basic data2024.jsonl", "not key=value", "12:04:31 step 3", "train.tokens_per_pack=8192",
    "row 3: a@b.org wrote 12:30", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "eos_token='x'",
    "4a9c07ae0f5d3a1ff0a06ef9e0c4b7c7a49d8e32", "kubernetes.secrets.HF_TOKEN={name: hub, key: token}",
    "--secret=WANDB_API_KEY",
    "control_tokens=parse", "C:/a/b", "runs/a b.jsonl", "registry.example.com:5000/dist-sft:0.1.0@sha256:abc",
])  # fmt: skip
def test_what_only_looks_like_a_secret_is_shown(text):
    assert redact_urls(text) == text and redacted({"path": text}) == {"path": text}


@pytest.mark.parametrize("text", [
    "http://127.0.0.1:8265: run 'a' is running", "(dist-sft job stop a --address http://127.0.0.1:8265), or wait",
    "see https://h.org/x.", "ray://head:10001; nothing", "http://h/x.jsonl?token=<hidden>:2: not JSON",
])  # fmt: skip
def test_the_marks_of_a_sentence_behind_a_url_are_no_part_of_it(text):
    assert redact_urls(text) == text
