"""No secret leaves the machine with the config."""

from dist_sft.config.redact import redact_urls, redacted, secret_keys
from dist_sft.config.run_config import RunConfig


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


def test_urls_lose_their_user_info_and_secret_parameters():
    assert redact_urls("s3://me:pw@bucket/x.jsonl") == "s3://<hidden>@bucket/x.jsonl"
    assert redact_urls("https://h/x?a=1&X-Amz-Signature=zz&token=t#f") == (
        "https://h/x?a=1&X-Amz-Signature=<hidden>&token=<hidden>#f"
    )
    assert redacted({"path": ["see http://u:p@h/ there"]}) == {"path": ["see http://<hidden>@h/ there"]}
    assert redact_urls("data/train.jsonl") == "data/train.jsonl"


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
