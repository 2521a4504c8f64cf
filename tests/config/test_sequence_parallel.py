"""Settings of sequence parallelism that cannot work are refused with what to change."""

import pytest
from transformers import LlamaConfig

from dist_sft.config.consistency import CHECKS
from dist_sft.config.sections import RunSections
from dist_sft.core.errors import ModelError
from dist_sft.model.architecture import Architecture
from dist_sft.model.supported import refuse_split


def problems(workers, **train):
    config = {
        "model": {"path": "m"},
        "data": {"sources": [{"path": "d"}], "context_length": 90},
        "train": {"steps": 1, "tokens_per_pack": 96, **train},
        "cluster": {"workers": workers},
    }
    sections = RunSections.model_validate(config)
    return [f"{problem}" for check in CHECKS for problem in check(sections)]


def test_neighbours_must_divide_the_workers():
    assert problems(8, sequence_parallel=4) == []
    (problem,) = problems(6, sequence_parallel=4)
    assert "train.sequence_parallel is 4, and cluster.workers is 6" in problem


def test_packs_are_padded_for_neighbours_and_for_kernels_alike():
    assert problems(8, sequence_parallel=4, pad_to_multiple_of=6) == []  # 12; 96 tokens
    (problem,) = problems(8, sequence_parallel=8, pad_to_multiple_of=5)  # 40; 120 tokens
    assert "padded to a multiple of 40" in problem


@pytest.mark.parametrize(
    ("heads", "groups", "fine"), [(8, 2, {1, 2, 4, 8}), (6, 3, {1, 3, 6}), (12, 12, {1, 2, 3, 4, 6, 12})]
)
def test_heads_must_be_divisible(heads, groups, fine):
    config = LlamaConfig(hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=groups)
    for neighbours in range(1, 14):
        if neighbours in fine:
            refuse_split(Architecture.of(config), neighbours, "model")
        else:
            with pytest.raises(ModelError, match=f"cannot be split between {neighbours} ranks") as error:
                refuse_split(Architecture.of(config), neighbours, "model")
            assert f"one of {', '.join(map(str, sorted(fine)))}" in error.value.fix
