"""What `train` proves of a run's first rows, on every start that has no checkpoint yet."""

import pytest
import torch

from dist_sft.chat import spans
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import SftError
from dist_sft.model.context import PackContext
from dist_sft.proofs.masks import certify_masks
from dist_sft.run import data as run_data
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run


@pytest.fixture
def config(tiny_run, tmp_path):
    run = {"name": "start", "dir": str(tmp_path / "run")}
    model = tiny_run["model"] | {"neftune": {"alpha": 5}}
    data, held_out = tiny_run["data"] | {"cache": None}, {"source": tiny_run["data"]["sources"][0]}
    return RunConfig.model_validate(tiny_run | {"run": run, "model": model, "data": data, "eval": held_out})


def test_a_sound_start_is_proved_on_all_its_rows(config, monkeypatch):
    data, seen = RunData.of(open_run(config)), []
    monkeypatch.setattr(run_data, "certify_masks", lambda *given: seen.append(given[0]) or certify_masks(*given))
    data.probe()
    assert seen == [data.train, data.held_out]


def test_a_mask_on_which_two_ways_do_not_agree_ends_a_start(config, monkeypatch):
    """The first way is broken: it learns whatever anybody says."""
    monkeypatch.setattr(spans, "weights_of", lambda conversation, _: tuple(1.0 for _ in conversation.messages))
    with pytest.raises(SftError, match=r"two ways agree on each learned token \(.*messages\[0\] is learned"):
        RunData.of(open_run(config)).probe()


def test_noise_that_is_scaled_by_the_pack_ends_a_start(config, monkeypatch):
    enter = PackContext.enter

    def whole(self, *rest, **more):
        enter(self, *rest, **more)
        self.lengths = torch.full_like(self.lengths, len(self.lengths))

    monkeypatch.setattr(PackContext, "enter", whole)
    with pytest.raises(SftError, match="noise of a sample: norm alpha"):
        RunData.of(open_run(config)).probe()
