"""Blocks recompute their activations in the backward pass, where the run file says so and nowhere else."""

import numpy as np
import pytest
import torch

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.sections import ModelSection
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.blocks import blocks_of
from dist_sft.model.configuration import load_configuration
from dist_sft.model.load import load

FULL, ADAPTER = {"kind": "full"}, {"kind": "lora", "rank": 4}


@pytest.mark.parametrize("tuning", [FULL, ADAPTER], ids=["full", "lora"])
@pytest.mark.parametrize(("share", "again"), [(False, 0), (0.5, 1), (True, 2)])
def test_as_many_blocks_recompute_as_were_asked_for(tiny_model, tuning, share, again):
    settings = ModelSection(path=str(tiny_model), dtype="float32", tuning=tuning, gradient_checkpointing=share)
    deepspeed, cpu = {"train_batch_size": 1}, torch.device("cpu")
    model = load(settings, load_configuration(settings), deepspeed, seed=0, device=cpu, steps=1)
    blocks, calls = blocks_of(model.module), []
    for block in blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    sample = EncodedSample(np.arange(5, 17, dtype=np.int32), np.r_[0, np.ones(11)].astype(np.float32))
    scores, _ = model.token_scores(model.module, build_pack([SampleId(0, 0, 0)], [sample]), 0)
    assert len(calls) == len(blocks) == 2
    (scores[:, 0] - scores[:, 1]).sum().backward()
    assert len(calls) == 2 + again
