"""The data side of a run, and all that its config.json says: what can be known before weights are read.

OpenedRun -> encoder, rows, order of the run, what identifies the run
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dist_sft.chat.encode import Encoder
from dist_sft.chat.templates import ChatTemplate
from dist_sft.checkpoint.layout import whole_steps
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError
from dist_sft.data.arrange import order_of, streams_of
from dist_sft.data.encoding import PROBE, Rows, Told, open_sources
from dist_sft.data.groups import Groups, RowGroups, refuse_unknown
from dist_sft.data.hold_out import HoldOut, hold_out
from dist_sft.data.ledger import Entry
from dist_sft.data.order import Steps
from dist_sft.data.packing import Packer
from dist_sft.estimate.cost import ModelCost, model_cost
from dist_sft.model.strengths import strengths
from dist_sft.model.supported import refuse_split, refuse_unsupported
from dist_sft.model.weights import check_weights, model_fingerprint
from dist_sft.proofs.masks import certify_masks, prove_masks
from dist_sft.proofs.proof import refuse
from dist_sft.run import folder as run_folder
from dist_sft.run.held_out import held_out_feed, probe
from dist_sft.run.opened import OpenedRun
from dist_sft.service.messages import Feed

TRAIN, HELD_OUT = "train", "held_out"
"""Names of the two feeds."""


@dataclass(frozen=True)
class Brief:
    """What a rank must know of the data; the rest is the service's. Travels to every rank.

    facts       what the run folder keeps
    template    as it is saved with the model
    vocabulary  number of ids
    steps       of each feed, by name
    sources     their names
    groups      that the samples of each feed are counted in, by its name
    told        what is told of the first rows, where the run begins
    held        rows of training that are held out, for the ledger
    """

    facts: dict[str, Any]
    template: ChatTemplate
    vocabulary: int
    cost: ModelCost
    steps: dict[str, int]
    sources: tuple[str, ...]
    groups: dict[str, Groups]
    told: Told = field(default_factory=Told)
    held: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class RunData:
    """The data side of a run: needs no GPU and no process group.

    run              what the data belong to
    train, held_out  rows and their steps; the latter of eval.sources and eval.share, each row once
    held             what of the rows of training is held out
    model_id         what identifies the weights that the run starts from
    """

    run: OpenedRun
    encoder: Encoder
    train: Feed
    held_out: Feed | None
    held: HoldOut
    cost: ModelCost
    model_id: str

    @classmethod
    def of(cls, run: OpenedRun) -> "RunData":
        """Raises every error that data, template, tokenizer or architecture can give before training."""
        config, settings, architecture = run.config, run.config.model, run.architecture
        refuse_unsupported(architecture, config.data.context_length, config.train.packing, settings.path)
        if settings.neftune:
            strengths(settings.neftune, architecture.get_text_config().num_hidden_layers)
        refuse_split(architecture, config.train.sequence_parallel, settings.path)
        check_weights(settings)
        with ThreadPoolExecutor(1, "open") as pool:  # files are hashed and indexed while the tokenizer is loaded
            opened = pool.submit(open_sources, config.data.sources, config.data)
            encoder = make_encoder(run)
            rows = Rows(config.data.sources, config.data, encoder, opened.result())
        held = hold_out(rows, config.eval.share) if config.eval.share else HoldOut()
        train = _train(config, rows, held)
        held_out = held_out_feed(config, encoder, rows, held)
        if column := config.tracking.group_by:
            refuse_unknown(column, [*train.rows.sources, *(held_out.rows.sources if held_out else ())])
        cost = model_cost(architecture, trains_weights=settings.tuning.kind == "full")
        return cls(run, encoder, train, held_out, held, cost, model_fingerprint(settings.path, architecture))

    @property
    def feeds(self) -> dict[str, Feed]:
        return {TRAIN: self.train, **({HELD_OUT: self.held_out} if self.held_out else {})}

    @cached_property
    def begins(self) -> bool:
        """Whether the run has no checkpoint to go on from."""
        return not whole_steps(run_folder.checkpoints_of(self.run.config, self.run.folder))

    def probe(self) -> None:
        """Look at the first rows of a run, unless it has checkpoints: then they were learned long ago.

        Raises DataError where they hold nothing to learn, RowError for those that bad_rows forbids, and SftError where
        their masks, or the noise on them, are not what they should be.
        """
        config = self.run.config
        if not self.begins:
            return
        for name, feed in self.feeds.items():
            looked = probe(feed, PROBE) if name == HELD_OUT else feed.rows.probe(feed.steps)
            refuse(prove_masks(certify_masks(feed, looked)))
            if config.model.neftune and name == TRAIN:
                from dist_sft.proofs.noise import prove_noise

                width = self.run.architecture.get_text_config().hidden_size
                refuse(prove_noise(config.model.neftune, looked.samples, width, config.run.seed))

    def told(self, rows: int = PROBE) -> Told:
        """What is told of the first rows; not of keys that a setting reads."""
        config, order = self.run.config, self.run.config.data.order
        by = {order.by, order.domain} if order.kind in ("staged", "interleaved") or order.pacing else set()
        told = self.train.rows.told(self.train.steps, rows)
        unread = {key: count for key, count in told.unread.items() if key not in by | {config.tracking.group_by}}
        return replace(told, unread=unread)

    def brief(self) -> Brief:
        """What every rank must know."""
        return Brief(
            self.facts(),
            self.encoder.template,
            self.encoder.vocabulary.size,
            self.cost,
            {name: len(feed.steps) for name, feed in self.feeds.items()},
            tuple(source.name for source in self.train.rows.sources),
            {name: feed.groups.groups for name, feed in self.feeds.items()},
            self.told() if self.begins else Told(),
            tuple(self.held.entries([source.name for source in self.train.rows.sources])),
        )

    def facts(self) -> dict[str, Any]:
        """What the run folder keeps. Held-out rows of files of their own must stay as they are only where they can end
        the run; those that are kept out of training, ever."""
        judges = self.run.config.eval.patience is not None
        given = len(self.run.config.eval.given)
        fingerprints = {
            "sources": self.train.rows.fingerprints,
            "encoder": self.encoder.fingerprint,
            "model": self.model_id,
            **({"held_out": self.held_out.rows.fingerprints[:given]} if self.held_out and given and judges else {}),
            **({"share": self.held.fingerprint} if self.held.count else {}),
        }
        return run_folder.facts(self.run, fingerprints, list(self.encoder.stop_ids))

    def packer(self, world: int) -> Packer:
        """How packs are made. Raises ConfigError where groups of neighbouring ranks do not add up to the world."""
        settings = self.run.config.train
        if world % settings.sequence_parallel:
            raise ConfigError(
                f"{world} ranks cannot be split into groups of {settings.sequence_parallel}",
                where="train.sequence_parallel",
                fix=f"take a number of ranks that is a multiple of {settings.sequence_parallel}",
            )
        return Packer(
            world,
            settings.tokens_per_pack,
            settings.packing,
            settings.micro_steps,
            self.cost.quadratic,
            settings.pack_multiple,
            settings.sequence_parallel,
        )


def make_encoder(run: OpenedRun) -> Encoder:
    """The tokenizer and template of a run, with its loss weights."""
    data = run.config.data
    return Encoder(
        run.vocabulary,
        data.template,
        data.loss,
        data.context_length,
        data.overlong,
        reasoning_without_place=data.reasoning_without_place,
        template_kwargs=data.template_kwargs,
    )


def _train(config: RunConfig, rows: Rows, held: HoldOut) -> Feed:
    data, settings = config.data, config.train
    streams = streams_of(data, rows.sources, config.run.seed, held.rows)
    order = order_of(data, streams, settings.samples_per_step, lambda: rows.first_lengths(streams))
    end = order.mixture.end
    if settings.steps is not None and end is not None and settings.steps * settings.samples_per_step > end:
        raise ConfigError(
            f"train.steps is {settings.steps}, and every source has ended after {end} samples: "
            f"{end // settings.samples_per_step} whole steps",
            where="train.steps",
            fix="raise max_epochs of a source, or train fewer steps",
        )
    steps = Steps.of(order, settings.samples_per_step, settings.steps, settings.epochs)
    return Feed(rows, steps, RowGroups(rows.sources, config.tracking.group_by))
