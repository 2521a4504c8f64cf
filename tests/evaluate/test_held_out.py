"""Held-out loss of a bare model: no run file, no engine, no process group."""

import json

import pytest
import torch

from dist_sft.chat.encode import Encoder
from dist_sft.config.data import DataSection, Source
from dist_sft.config.sections import ModelSection
from dist_sft.data.encoding import Rows
from dist_sft.data.groups import RowGroups
from dist_sft.data.ledger import Ledger
from dist_sft.data.order import Order, Steps
from dist_sft.data.packing import Packer
from dist_sft.evaluate.held_out import held_out_loss
from dist_sft.model.load import load
from dist_sft.model.pretrained import Pretrained
from dist_sft.service.client import StepClient
from dist_sft.service.local import LocalLink
from dist_sft.service.messages import Feed
from tests.parity.by_hand import losses_by_group

STEPS, CONTEXT = 3, 512


@pytest.fixture(scope="module")
def chats(tiny_rows, tmp_path_factory):
    """A file of chats with a tag."""
    path = tmp_path_factory.mktemp("held_out") / "rows.jsonl"
    rows = [json.loads(line) | {"tag": f"t{i % 3}"} for i, line in enumerate(tiny_rows.read_text().splitlines()[:12])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def pretrained(tiny_model):
    return Pretrained(ModelSection(path=str(tiny_model), dtype="float32"))


@pytest.fixture(scope="module")
def model(pretrained):
    return load(
        pretrained.settings, pretrained.architecture.configuration, {"train_batch_size": 1}, 0, torch.device("cpu"), 1
    )


@pytest.fixture(scope="module")
def feed(chats, pretrained):
    source = Source(path=str(chats))
    data = DataSection(sources=[source], context_length=CONTEXT, cache=None)
    rows = Rows([source], data, Encoder(pretrained.vocabulary, "auto", data.loss, CONTEXT, "error"))
    order = Order.shuffled(rows.lengths, seed=0)
    return Feed(rows, Steps(order, 12 // STEPS, 12), RowGroups(rows.sources, "tag"))


def shares_of(feed, world=1, rank=0, packing=True):
    link = LocalLink({"rows": feed}, Packer(world, 4 * CONTEXT, packing), CONTEXT, budget=1 << 24)
    try:
        return list(StepClient(link, "rows", STEPS, 1, world, rank, 1, Ledger(), 1.0).shares(0))
    finally:
        link.close()


def test_the_loss_of_a_bare_model_is_that_of_its_samples_by_hand(model, feed, chats, tiny_model):
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    expected = losses_by_group(tiny_model, rows, lambda row: ("all", row["tag"]))
    loss, _, tokens = expected.pop("all")
    found = held_out_loss(model, shares_of(feed), feed.groups.groups)
    assert (found.loss, found.tokens) == (pytest.approx(loss, rel=1e-6), tokens)
    (source, *tags) = found.groups
    assert (source.by, source.loss, source.tokens) == ("source", pytest.approx(loss, rel=1e-6), tokens)
    assert {tag.name: (tag.loss, tag.weight, tag.tokens) for tag in tags} == {
        name: pytest.approx(values, rel=1e-6) for name, values in expected.items()
    }


def test_parts_of_ranks_add_up_to_the_whole_in_one_reduction(model, feed):
    """The other ranks' sums are kept, and added where a process group would."""
    kept, reductions = [], []
    for rank in (1, 2):
        held_out_loss(model, shares_of(feed, 3, rank), feed.groups.groups, add_up=kept.append)

    def add_up(sums):
        reductions.append(len(sums))
        for other in kept:
            sums += other

    found = held_out_loss(model, shares_of(feed, 3, 0, packing=True), feed.groups.groups, add_up=add_up)
    whole = held_out_loss(model, shares_of(feed, packing=False), feed.groups.groups)
    assert reductions == [1 + len(feed.groups.groups)]
    assert (found.loss, found.tokens) == (pytest.approx(whole.loss, rel=1e-6), whole.tokens)
    for one, other in zip(found.groups, whole.groups, strict=True):
        assert (one.by, one.name, one.tokens) == (other.by, other.name, other.tokens)
        assert (one.loss, one.weight) == (pytest.approx(other.loss, rel=1e-6), other.weight)


def test_a_model_that_is_trained_is_left_as_it_was(model, feed):
    model.module.train()
    before = [p.detach().clone() for p in model.module.parameters()]
    looked = []
    held_out_loss(model, shares_of(feed), feed.groups.groups, after_share=lambda: looked.append(model.module.training))
    assert looked == [False] * STEPS and model.module.training
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(model.module.parameters(), before, strict=True))
