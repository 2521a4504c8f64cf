"""Weights on disk that do not say what the config says."""

import json
import shutil

import pytest

from tests.ranks import train_on_ranks


@pytest.mark.parametrize("stage", [0, 3])
def test_two_heads_where_the_config_says_there_is_one_are_refused(tiny_run, tiny_model, tmp_path, stage):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    run = tiny_run | {
        "run": {"name": "heads", "dir": str(tmp_path / "run")},
        "model": tiny_run["model"] | {"path": str(folder)},
        "deepspeed": {"zero_optimization": {"stage": stage}},
    }
    (error,) = train_on_ranks([run], 1, check=False)
    assert error.startswith(f"ModelError: {folder}: its config says that lm_head.weight is model.embed_tokens.weight")
    assert "set tie_word_embeddings to false" in error
