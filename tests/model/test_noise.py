"""Noise and dropout belong to a sample: no rank, pack or order of calls can change them."""

import numpy as np
import pytest
import torch

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model import noise
from dist_sft.model.context import PackContext

CPU = torch.device("cpu")


def enter(*samples, step=3, seed=0):
    """A context with samples given as (position, length)."""
    context = PackContext()
    encoded = [EncodedSample(np.zeros(length, np.int32), np.zeros(length, np.float32)) for _, length in samples]
    context.enter(build_pack([SampleId(p, 0, 0) for p, _ in samples], encoded), CPU, seed, step)
    return context


def test_the_device_mixes_as_numpy_does():
    values = np.arange(1000, dtype=np.uint64) * np.uint64(0x123456789ABCDEF)
    mixed = noise.mix64(torch.from_numpy(values.view(np.int64)))
    assert np.array_equal(mixed.numpy().view(np.uint64), seeds.mix64(values))


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_a_sample_has_the_same_noise_alone_and_in_any_pack(distribution):
    alone = noise.neftune(enter((7, 20)), 5, distribution, 16)
    packed = noise.neftune(enter((3, 50), (7, 20), (9, 4)), 5, distribution, 16)
    assert torch.equal(alone, packed[50:70])


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_the_noise_of_a_sample_has_the_norm_of_the_paper_whatever_the_pack(distribution):
    draw = noise.neftune(enter((0, 162), (1, 3934)), 5, distribution, 256)
    for part in (draw[:162], draw[162:]):
        assert part.norm() == pytest.approx(5 / 3**0.5, rel=0.02)
        assert part.mean().abs() < 0.05 * part.std()


def test_uniform_noise_is_bounded_by_alpha_over_the_root_of_length_times_width():
    draw = noise.neftune(enter((0, 100)), 5, "uniform", 64)
    bound = 5 / (100 * 64) ** 0.5
    assert 0.99 * bound < draw.abs().max() <= bound


def test_noise_differs_between_steps_samples_seeds_and_purposes():
    draws = [
        noise.uniform(enter((0, 8)), "a", 8),
        noise.uniform(enter((1, 8)), "a", 8),
        noise.uniform(enter((0, 8), step=4), "a", 8),
        noise.uniform(enter((0, 8), seed=1), "a", 8),
        noise.uniform(enter((0, 8)), "b", 8),
    ]
    flat = torch.stack([draw.flatten() for draw in draws])
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.4
    assert len({float(row[0]) for row in flat}) == 5


def test_dropout_keeps_the_expectation_and_follows_the_sample():
    values = torch.ones(1, 70, 64)
    packed = noise.SampleDropout(0.25, "layer", enter((3, 50), (7, 20)))(values)
    alone = noise.SampleDropout(0.25, "layer", enter((7, 20)))(values[:, :20])
    assert torch.equal(packed[:, 50:], alone)
    assert packed.mean() == pytest.approx(1, abs=0.03)
    assert (packed == 0).float().mean() == pytest.approx(0.25, abs=0.03)


def test_evaluation_has_neither_noise_nor_dropout():
    context = enter((0, 10), step=None)
    values = torch.ones(1, 10, 4)
    assert torch.equal(noise.SampleDropout(0.5, "layer", context)(values), values)
