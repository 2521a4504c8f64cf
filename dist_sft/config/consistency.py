"""Settings that are each right, and wrong together."""

from collections.abc import Iterator, Sequence
from typing import Any

from dist_sft.config.data import Source
from dist_sft.config.document import Path, dotted
from dist_sft.config.kubernetes_rules import kubernetes
from dist_sft.config.noise import Depth
from dist_sft.config.presets import PRESETS
from dist_sft.config.problems import Problem
from dist_sft.config.root import Check
from dist_sft.config.sections import HELD_OUT, EvalSource, LoraTuning, RunSections


def _length(config: RunSections) -> Iterator[Problem]:
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
    elif -(-data.context_length // train.pack_multiple) * train.pack_multiple > train.tokens_per_pack:
        yield Problem(
            ("train", "pad_to_multiple_of" if train.sequence_parallel == 1 else "sequence_parallel"),
            f"a sample of data.context_length={data.context_length} tokens, padded to a multiple of "
            f"{train.pack_multiple}, is longer than train.tokens_per_pack, {train.tokens_per_pack}",
            f"make train.tokens_per_pack a multiple of {train.pack_multiple}",
        )


def _schedule(config: RunSections) -> Iterator[Problem]:
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


def _optimizer(config: RunSections) -> Iterator[Problem]:
    optimizer = config.train.optimizer
    if optimizer.name != "sgd" and optimizer.momentum > 0:
        yield Problem(
            ("train", "optimizer", "momentum"),
            f"train.optimizer.momentum is a setting of sgd, and the optimizer is {optimizer.name}",
            "remove it, or set train.optimizer.betas, whose first number is AdamW's momentum",
        )
    chosen = ("decay", optimizer.decay) if optimizer.decay != "matrices" else ("decay_embeddings", "false")
    if optimizer.weight_decay == 0 and (optimizer.decay != "matrices" or not optimizer.decay_embeddings):
        yield Problem(
            ("train", "optimizer", chosen[0]),
            f"train.optimizer.{chosen[0]} is {chosen[1]}, and train.optimizer.weight_decay is 0: nothing decays",
            "set train.optimizer.weight_decay, or remove it",
        )


def _adapters(config: RunSections) -> Iterator[Problem]:
    tuning = config.model.tuning
    if not isinstance(tuning, LoraTuning):
        return
    if tuning.init == "pissa" and tuning.dropout:
        yield Problem(
            ("model", "tuning", "dropout"),
            f"model.tuning.dropout is {tuning.dropout:g}, and init is pissa, whose adapters start as the principal "
            "part of the model's own weights: dropout would leave parts of the base model out",
            "set model.tuning.dropout=0, or model.tuning.init=default",
        )
    both = sorted(set(tuning.modules_to_save) & set(() if isinstance(tuning.targets, str) else tuning.targets))
    if both:
        yield Problem(
            ("model", "tuning", "modules_to_save"),
            f"{', '.join(both)} would have an adapter (model.tuning.targets) and be trained whole (modules_to_save)",
            "name it in one of them",
        )


def _evaluation(config: RunSections) -> Iterator[Problem]:
    evaluation = config.eval
    if evaluation.source is not None and evaluation.sources:
        yield Problem(
            ("eval", "sources"), "both eval.source and eval.sources are set", "write all sources under eval.sources"
        )
    for place, source in evaluation.given.items():
        yield from _held_out_source(source, ("eval", *place))
    names = evaluation.names
    if evaluation.patience is not None and not names:
        yield Problem(
            ("eval", "patience"),
            "eval.patience is set, but eval.source is not, nor sources or share: there is nothing to wait for",
            "set eval.source to held-out rows, or remove eval.patience",
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        place = ("eval", "sources") if len(evaluation.given) > 1 else ("eval", "share")
        yield Problem(
            place,
            f"two sources of held-out rows are called '{twice[0]}'"
            + (", which is what the rows of eval.share are called" if evaluation.share and HELD_OUT in twice else ""),
            "give each a name of its own, e.g. {name: math, path: math.jsonl}",
        )
    if evaluation.decides is not None and evaluation.decides not in names:
        yield Problem(
            ("eval", "decides"),
            f"eval.decides is '{evaluation.decides}', and no source of held-out rows is called so",
            f"use {' or '.join(names)}" if names else "set eval.sources or eval.share, or remove eval.decides",
        )


def _held_out_source(source: EvalSource, path: Path) -> Iterator[Problem]:
    """Each row is scored once: nothing of how training sources are mixed can be meant."""
    for name in ("weight", "token_share", "max_epochs"):
        if getattr(source, name) is not None:
            yield Problem(
                (*path, name),
                f"{dotted((*path, name))} says how training rows are mixed, and held-out rows are scored once each",
                "remove it; eval.samples limits the rows, eval.decides says whose loss counts",
            )


def _device(config: RunSections) -> Iterator[Problem]:
    if config.model.attention in ("varlen", "flash") and config.cluster.gpus_per_worker == 0:
        yield Problem(
            ("model", "attention"),
            f"model.attention is {config.model.attention}, a CUDA kernel, and cluster.gpus_per_worker is 0",
            "set model.attention: auto, or give the workers GPUs",
        )
    if config.train.optimizer.name == "adamw8bit" and config.cluster.gpus_per_worker == 0:
        yield Problem(
            ("train", "optimizer", "name"),
            "train.optimizer.name is adamw8bit, which computes on GPUs, and cluster.gpus_per_worker is 0",
            "set train.optimizer.name: adamw, or give the workers GPUs",
        )


def _workers(config: RunSections) -> Iterator[Problem]:
    """What binds the number of ranks."""
    size, fewest, most = config.train.sequence_parallel, config.cluster.fewest, config.cluster.most
    if fewest > most:
        yield Problem(
            ("cluster", "workers"),
            f"cluster.workers is [{fewest}, {most}]: the fewest are more than the most",
            f"write [{most}, {fewest}]",
        )
    elif fewest == most and most % size:
        yield Problem(
            ("train", "sequence_parallel"),
            f"train.sequence_parallel is {size}, and cluster.workers is {most}: groups would leave ranks over",
            f"make cluster.workers a multiple of {size}, or train.sequence_parallel a divisor of {most}",
        )
    bound = {
        "train.sequence_parallel": size > 1,
        "model.neftune.scale: row": bool(config.model.neftune and config.model.neftune.scale == "row"),
        "train.optimizer.name: adamw8bit": config.train.optimizer.name == "adamw8bit",
    }
    for setting in (name for name, set_ in bound.items() if set_ and fewest < most):
        yield Problem(
            ("cluster", "workers"),
            f"cluster.workers is [{fewest}, {most}], and {setting} needs one number of ranks to the end",
            f"write cluster.workers: {most}",
        )


def _service(config: RunSections) -> Iterator[Problem]:
    if config.service.resource and config.service.encoders == 0:
        yield Problem(
            ("service", "resource"),
            "service.resource says where encoders run, and service.encoders is 0: there are none",
            "remove one of them",
        )


def _mixture(config: RunSections) -> Iterator[Problem]:
    sources = config.data.sources
    mixed = [source.amount is not None for source in sources]
    for i, source in enumerate(sources):
        path = ("data", "sources", i)
        if source.weight is not None and source.token_share is not None:
            yield Problem((*path, "token_share"), f"data.sources[{i}] has weight and token_share", "remove one of them")
        if any(mixed) and not mixed[i]:
            yield Problem(
                path,
                f"data.sources[{i}] has neither weight nor token_share, and other sources do",
                "give each source one of them, or none any: then all rows are shuffled together",
            )
        if source.max_epochs is not None and not any(mixed) and len(sources) > 1:
            yield Problem(
                (*path, "max_epochs"),
                f"data.sources[{i}].max_epochs is set, but no source has a weight: all end together",
                "give the sources weights, or set train.epochs",
            )
    if any(mixed) and not any(source.amount for source in sources):
        yield Problem(("data", "sources"), "every source has weight 0", "make one weight above 0")
    yield from _shares(sources, [source.amount or 0.0 for source in sources], ("data", "sources"))


def _shares(sources: Sequence[Source], amounts: Sequence[float], path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Shares of tokens must leave room for the sources with weights above 0, or else be all of them."""
    pairs = list(zip(sources, amounts, strict=True))
    given = [amount for source, amount in pairs if source.token_share is not None]
    total, others = sum(given), any(amount for source, amount in pairs if source.token_share is None)
    if given and (total >= 1 if others else abs(total - 1) > 1e-6):
        yield Problem(
            path,
            f"the token shares add up to {total:g}",
            "make them less than 1, for the other sources have the rest" if others else "make them 1",
        )


def _changes(config: RunSections) -> Iterator[Problem]:
    sources, last = config.data.sources, 0
    for i, change in enumerate(config.data.schedule):
        path = ("data", "schedule", i)
        if all(source.amount is None for source in sources):
            yield Problem(path, "data.schedule changes weights, and no source has one", "give each source a weight")
        if len(change.weights) != len(sources):
            what = f"data.schedule[{i}] has {len(change.weights)} weights for {len(sources)} sources"
            yield Problem((*path, "weights"), what, "give one for each source, 0 for one that is left out")
        elif not any(change.weights):
            yield Problem((*path, "weights"), f"data.schedule[{i}] leaves out every source", "make one weight above 0")
        else:
            yield from _shares(sources, change.weights, path)
        if config.train.steps is not None and change.step >= config.train.steps:
            what = f"data.schedule[{i}].step is {change.step}, and the run has {config.train.steps} steps"
            yield Problem((*path, "step"), what, "name an earlier step, or raise train.steps")
        if change.step <= last and i:
            yield Problem((*path, "step"), f"data.schedule[{i}].step is {change.step}, after {last}", "sort by step")
        last = change.step


def _order(config: RunSections) -> Iterator[Problem]:
    order = config.data.order
    if order.pacing and order.kind not in ("staged", "interleaved"):
        what = f"data.order.pacing opens easy rows first, and data.order.kind is {order.kind}"
        yield Problem(("data", "order", "pacing"), what, "set data.order.kind to staged or interleaved")
    if (order.stages or order.by != "difficulty") and order.kind not in ("staged", "interleaved"):
        what = f"data.order.by and stages say how hard rows are, and data.order.kind is {order.kind}"
        yield Problem(("data", "order", "kind"), what, "set data.order.kind to staged or interleaved")
    if order.domain is not None and order.kind != "interleaved":
        what = f"data.order.domain is a setting of interleaved, and data.order.kind is {order.kind}"
        yield Problem(("data", "order", "domain"), what, "set data.order.kind: interleaved")
    if len(set(order.stages)) < len(order.stages):
        yield Problem(("data", "order", "stages"), "data.order.stages names a stage twice", "name each once")


def _noise(config: RunSections) -> Iterator[Problem]:
    settings = config.model.neftune
    if settings is None:
        return
    path, layers, schedule = ("model", "neftune"), settings.layers, settings.schedule
    if layers is not None and settings.alpha is not None:
        what = "model.neftune has alpha and layers, and layers says alpha by block"
        yield Problem((*path, "alpha"), what, f"remove it, or write layers: {{0: {settings.alpha:g}}}")
    if layers is None and settings.alpha is None:
        yield Problem((*path, "alpha"), "model.neftune.alpha is null", "set it, e.g. to 5, or remove model.neftune")
    if layers == {}:
        yield Problem((*path, "layers"), "model.neftune.layers names no block", "name some, e.g. {0: 5}")
    if isinstance(layers, Depth) and layers.shape == "constant" and layers.last not in (0, layers.first):
        what = f"model.neftune.layers is constant, and last is {layers.last:g}, not first, {layers.first:g}"
        yield Problem((*path, "layers", "last"), what, "remove last, or set shape: linear")
    if settings.scale == "row" and settings.where != "all":
        what = f"model.neftune.scale is row, as transformers' hook, which knows no where: {settings.where}"
        yield Problem((*path, "scale"), what, "set scale: sample, or where: all")
    others = sorted(role for role, weight in config.data.loss.roles.items() if weight and role != "assistant")
    if settings.where != "all" and others:
        what = (
            f"model.neftune.where is {settings.where}, which tells answers by their loss weight, and data.loss.roles "
            f"gives one to {', '.join(others)}: it would count as an answer"
        )
        yield Problem((*path, "where"), what, "set where: all, or leave the weight to assistant alone")
    if settings.where == "prompt" and all(source.format == "text" for source in config.data.sources):
        what = "model.neftune.where is prompt, and all of a text is learned: there is no prompt"
        yield Problem((*path, "where"), what, "set where: all")
    if schedule.shape == "constant" and schedule.end:
        what = f"model.neftune.schedule is constant, and end is {schedule.end:g}: it does not fall"
        yield Problem((*path, "schedule", "end"), what, "remove end, or set shape: linear or cosine")
    if config.train.steps is not None and schedule.warmup >= 1 and schedule.warmup > config.train.steps:
        what = f"model.neftune.schedule.warmup is {schedule.warmup:g} steps, of {config.train.steps} in all"
        yield Problem((*path, "schedule", "warmup"), what, "give a share of all steps, e.g. 0.03, or fewer steps")


def _preset(config: RunSections) -> Iterator[Problem]:
    preset, kind = config.train.preset, config.model.tuning.kind
    if preset in ("full", "lora") and preset != kind:
        yield Problem(
            ("train", "preset"),
            f"train.preset is {preset}, and model.tuning.kind is {kind}: their learning rates differ tenfold",
            f"set train.preset: {kind}",
        )
    elif ignored := [dotted(path) for path in PRESETS.get(preset, {}) if not _is_set(config, path)]:
        what = f"train.preset is {preset}, and what it fills in is left at other values: {', '.join(ignored)}"
        yield Problem(("train", "preset"), what, "make the configuration with load_config or RunConfig.model_validate")


def _is_set(config: RunSections, path: Path) -> bool:
    """Whether a setting was given, and not left at its default."""
    section: Any = config
    for part in path[:-1]:
        section = getattr(section, str(part))
    return path[-1] in section.model_fields_set


def _loss(config: RunSections) -> Iterator[Problem]:
    loss = config.train.loss
    if loss.kind == "dft" and loss.label_smoothing:
        what = "train.loss.kind is dft, which weighs a target by its own probability, and label_smoothing spreads it"
        yield Problem(("train", "loss", "label_smoothing"), what, "remove label_smoothing, or set kind: nll")


CHECKS: tuple[Check, ...] = (
    *(_length, _schedule, _optimizer, _adapters, _preset, _loss, _noise),
    *(_evaluation, _device, _workers, _service, _mixture, _changes, _order, kubernetes),
)
"""Each looks for one kind of settings that cannot both be meant."""
