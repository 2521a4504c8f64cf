"""No secret leaves the machine with the config."""

from dist_sft.config.resolve import redact_urls, redacted


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
    settings = {"tokens_per_pack": 8192, "keep": 2, "tokenizer": "x", "turns": ["all"], "key": None}
    assert redacted(settings) == settings


def test_urls_lose_their_user_info_and_secret_parameters():
    assert redact_urls("s3://me:pw@bucket/x.jsonl") == "s3://<hidden>@bucket/x.jsonl"
    assert redact_urls("https://h/x?a=1&X-Amz-Signature=zz&token=t#f") == (
        "https://h/x?a=1&X-Amz-Signature=<hidden>&token=<hidden>#f"
    )
    assert redacted({"path": ["see http://u:p@h/ there"]}) == {"path": ["see http://<hidden>@h/ there"]}
    assert redact_urls("data/train.jsonl") == "data/train.jsonl"
