"""Settings that are each right, and wrong together."""

from collections.abc import Iterator

from dist_sft.config.problems import Problem
from dist_sft.config.sections import RunConfig


def contradictions(config: RunConfig) -> list[Problem]:
    """All pairs of settings that cannot both be meant."""
    return [*_length(config), *_schedule(config), *_optimizer(config), *_evaluation(config), *_device(config)]


def _length(config: RunConfig) -> Iterator[Problem]:
    train, data = config.train, config.data
    if train.epochs is None and train.steps is None:
        yield Problem(("train",), "neither train.epochs nor train.steps is set", "set one, e.g. train.epochs: 2")
    if train.epochs is not None and train.steps is not None:
        yield Problem(("train", "steps"), "both train.epochs and train.steps are set", "remove one of them")
    if data.context_length > train.tokens_per_pack:
        yield Problem(
            ("train", "tokens_per_pack"),
            f"data.context_length is {data.context_length}, more than train.tokens_per_pack, {train.tokens_per_pack}: "
            "the longest sample fits into no pack",
            f"set train.tokens_per_pack={data.context_length}, or shorten data.context_length",
        )


def _schedule(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if train.min_learning_rate > train.learning_rate:
        yield Problem(
            ("train", "min_learning_rate"),
            f"train.min_learning_rate is {train.min_learning_rate:g}, above learning_rate, {train.learning_rate:g}",
            "the learning rate decays from learning_rate to min_learning_rate",
        )
    if train.steps is not None and train.warmup >= 1 and train.warmup > train.steps:
        yield Problem(
            ("train", "warmup"),
            f"train.warmup is {train.warmup:g} steps, of {train.steps} in all",
            "give a share of all steps, e.g. 0.03, or fewer steps",
        )
    if train.schedule == "wsd" and train.warmup < 1 and train.decay < 1 and train.warmup + train.decay > 1:
        yield Problem(
            ("train", "decay"),
            f"train.warmup and train.decay are {train.warmup:g} and {train.decay:g} of all steps: more than all",
            "make their sum at most 1",
        )


def _optimizer(config: RunConfig) -> Iterator[Problem]:
    optimizer = config.train.optimizer
    if optimizer.name == "adamw" and optimizer.momentum > 0:
        yield Problem(
            ("train", "optimizer", "momentum"),
            "train.optimizer.momentum is a setting of sgd, and the optimizer is adamw",
            "remove it, or set train.optimizer.betas, whose first number is AdamW's momentum",
        )


def _evaluation(config: RunConfig) -> Iterator[Problem]:
    if config.eval.patience is not None and config.eval.source is None:
        yield Problem(
            ("eval", "patience"),
            "eval.patience is set, but eval.source is not: there is nothing to wait for",
            "set eval.source to held-out rows, or remove eval.patience",
        )


def _device(config: RunConfig) -> Iterator[Problem]:
    if config.model.attention == "varlen" and config.cluster.gpus_per_worker == 0:
        yield Problem(
            ("model", "attention"),
            "model.attention is varlen, a CUDA kernel, and cluster.gpus_per_worker is 0",
            "set model.attention: auto, or give the workers GPUs",
        )
