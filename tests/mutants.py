"""Faults that trainers have had, put into a rank on purpose: the tests must notice each of them.

A fault of UPDATES is called in place of `update`, with it and its arguments; one of CLIENTS changes a rank's link to
the data; one of ENGINES changes what DeepSpeed is asked for.
"""

import dataclasses
import itertools
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch.distributed as dist


def _divided(share, weight):
    """The share of a step whose loss is divided by `weight`."""
    return dataclasses.replace(share, totals=dataclasses.replace(share.totals, weight=weight or 1.0))


def mean_of_ranks(update, engine, model, share, *rest):
    """Each rank takes the mean over what it supervises itself, and DeepSpeed averages these."""
    own = sum(float(pack.weights.sum()) for pack in share.packs)
    return update(engine, model, _divided(share, own * dist.get_world_size()), *rest)


def mean_of_packs(update, engine, model, share, *rest):
    """Each pack's mean, averaged over micro-steps and ranks."""

    def token_scores(call, pack, step, mean):
        scores, weights = model.token_scores(call, pack, step, mean)
        packs = len(share.packs) * dist.get_world_size()
        return scores, weights * share.totals.weight / (max(float(weights.sum()), 1e-9) * packs)

    return update(engine, SimpleNamespace(token_scores=token_scores, sample_of=model.sample_of), share, *rest)


def sum_of_ranks(update, engine, model, share, *rest):
    """The loss is not multiplied by the number of ranks, and DeepSpeed averages over them."""
    return update(engine, model, _divided(share, share.totals.weight * dist.get_world_size()), *rest)


def no_loss_weights(update, engine, model, share, *rest):
    """Every supervised token counts the same."""
    packs = tuple(
        dataclasses.replace(pack, weights=(pack.weights > 0).astype(np.float32)) for pack in share.packs
    )  # fmt: skip
    return update(engine, model, _divided(dataclasses.replace(share, packs=packs), share.totals.supervised), *rest)


def divided_by_micro_steps(update, engine, model, share, *rest):
    """DeepSpeed is told how many micro-steps there are, and `scale_wrt_gas=False` is missing."""
    with mock.patch.object(engine, "gradient_accumulation_steps", lambda: len(share.packs)):
        return scaled_by_deepspeed(update, engine, model, share, *rest)


def scaled_by_deepspeed(update, engine, model, share, *rest):
    """`scale_wrt_gas=False` is missing, and no more: DeepSpeed is told of one micro-step, and divides by 1."""
    backward = engine.backward
    with mock.patch.object(engine, "backward", lambda loss, **_: backward(loss)):
        return update(engine, model, share, *rest)


def lost_backward(update, engine, model, share, *rest):
    """The first micro-step's gradient is never computed."""
    calls, backward = itertools.count(), engine.backward
    with mock.patch.object(engine, "backward", lambda loss, **how: backward(loss, **how) if next(calls) else loss):
        return update(engine, model, share, *rest)


def early_boundary(update, engine, model, share, *rest):
    """Each micro-step is taken for the last of its step."""
    mark = engine.set_gradient_accumulation_boundary
    with mock.patch.object(engine, "set_gradient_accumulation_boundary", lambda _: mark(True)):
        return update(engine, model, share, *rest)


def lost_pack(update, engine, model, share, *rest):
    """Every rank leaves out its last pack."""
    return update(engine, model, dataclasses.replace(share, packs=share.packs[:-1]), *rest)


def same_rank(client):
    """Every rank is told that it is rank 0, and gets the same share."""
    client.rank = 0


def alone(client):
    """Every rank is told that it is the only one, and gets the whole step."""
    client.rank, client.world = 0, 1


def one_rank_too_many(client):
    """The ranks share a step out as if there were one more of them."""
    client.world += 1


def one_step_ahead(client):
    """Rank 1 begins with the next step."""
    shares = client.shares
    client.shares = lambda start: shares(start + client.rank)


def other_stage(asked):
    """Another ZeRO stage than the one asked for."""
    asked["config"] = asked["config"] | {"zero_optimization": {"stage": 1}}


def engine_of_its_own(asked):
    """Each rank's engine takes the rank for the only one."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    mine = groups[dist.get_rank()]
    asked["config"] = asked["config"] | {"train_batch_size": 1}
    asked["mpu"] = SimpleNamespace(
        get_data_parallel_world_size=lambda: 1,
        get_data_parallel_rank=lambda: 0,
        get_data_parallel_group=lambda: mine,
        get_model_parallel_world_size=lambda: 1,
        get_model_parallel_rank=lambda: 0,
        get_model_parallel_group=lambda: mine,
    )


UPDATES = (
    mean_of_ranks,
    mean_of_packs,
    sum_of_ranks,
    no_loss_weights,
    divided_by_micro_steps,
    lost_backward,
    early_boundary,
    lost_pack,
)
HARMLESS = (scaled_by_deepspeed,)
CLIENTS = (same_rank, alone, one_rank_too_many, one_step_ahead)
ENGINES = (other_stage, engine_of_its_own)


@contextmanager
def mutated(name):
    """Run with the fault of this name; None: without."""
    fault = next((fault for fault in (*UPDATES, *HARMLESS, *CLIENTS, *ENGINES) if fault.__name__ == name), None)
    assert fault or name is None, name
    if fault in (*UPDATES, *HARMLESS):
        from dist_sft.train.loop import update

        with mock.patch("dist_sft.train.loop.update", lambda *given: fault(update, *given)):
            yield
    elif fault in CLIENTS:
        from dist_sft.run.supply import Supply

        training = Supply.training

        def changed(*given):
            client = training(*given)
            fault(client)
            return client

        with mock.patch.object(Supply, "training", changed):
            yield
    elif fault in ENGINES:
        import deepspeed

        initialize = deepspeed.initialize

        def asked(**given):
            fault(given)
            return initialize(**given)

        with mock.patch.object(deepspeed, "initialize", asked):
            yield
    else:
        yield


@contextmanager
def silent(rows):
    """Run with these rows' loss weights all 0, but for the look at the first rows, which would refuse such masks.

    A run file cannot ask for that: such rows are dropped or refused.
    """
    from dist_sft.data.encoding import Rows

    encode, probe = Rows.encode, Rows.probe

    def encoded(self, step, ids):
        found = encode(self, step, ids)
        samples = (
            dataclasses.replace(sample, weights=np.zeros_like(sample.weights)) if id_.row in rows else sample
            for id_, sample in zip(found.ids, found.samples, strict=True)
        )
        return dataclasses.replace(found, samples=tuple(samples))

    def probed(self, *given):
        with mock.patch.object(Rows, "encode", encode):
            return probe(self, *given)

    with mock.patch.object(Rows, "encode", encoded), mock.patch.object(Rows, "probe", probed):
        yield
