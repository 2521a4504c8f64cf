"""`dist-sft check`: all that can be found wrong without a GPU and without reading weights.

OpenedRun ─ machine, folder, data, masks, packs, memory, proofs ─> CheckReport
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dist_sft.chat.certificate import Certificate
from dist_sft.chat.encode import Encoder
from dist_sft.config.advice import warnings
from dist_sft.config.presets import SOURCES
from dist_sft.config.run_config import RunConfig
from dist_sft.data.encoding import PROBE, EncodedStep, Told
from dist_sft.estimate.advice import Advice, DataFacts, advise
from dist_sft.estimate.memory import Memory, memory_of_a_rank
from dist_sft.model.trainable import far_positions
from dist_sft.proofs.masks import certify_masks, prove_masks
from dist_sft.proofs.proof import Proof, refuse
from dist_sft.run import folder as run_folder
from dist_sft.run.data import RunData
from dist_sft.run.held_out import probe, rows_by_name
from dist_sft.run.opened import OpenedRun
from dist_sft.run.resources import check_resources, is_local
from dist_sft.run.trainable import refuse_untrainable
from dist_sft.tracking.wandb_sink import refuse_without_login


@dataclass(frozen=True)
class CheckReport:
    """What was looked at.

    rows           of each source, by its name
    share          how many of all these eval.share holds out; None without it
    steps          of the whole run
    preset         what train.preset left in the settings, and where its values are from; None without one
    masks          coverage of the rows that were looked at, and whether both ways to find it agree
    dropped        rows of these that are dropped or cut, with the reason
    told           keys that these rows fill and nothing reads, control tokens that they spell out, and what of their
                   answers is not as at inference
    stops          tokens on which generation with an export stops, by itself
    longest        tokens
    micro_steps    of a step of rows like these; balance: time over perfect; fill: share of the packs' room
    advice         what to change where a step is too small for its ranks
    tuning         whether the data fit the kind of tuning
    held_out       rows that the model is judged by, by the name of their source
    memory         estimated bytes of a rank
    proofs         what was proved, or could not be
    """

    rows: dict[str, int]
    share: int | None
    steps: int
    preset: str | None
    zero_stage: int
    masks: Certificate
    dropped: tuple[str, ...]
    told: Told
    stops: tuple[str, ...]
    longest: int
    micro_steps: int
    balance: float
    fill: float
    advice: str | None
    tuning: tuple[Advice, ...]
    warnings: tuple[str, ...]
    held_out: dict[str, int]
    memory: Memory
    proofs: tuple[Proof, ...]

    @property
    def supervised_share(self) -> float:
        """Of all tokens that were looked at."""
        return self.masks.supervised / self.masks.tokens

    def refuse(self) -> None:
        """Raise SftError for the first proof that does not hold."""
        refuse(self.proofs)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        optional = {
            "preset": self.preset,
            "held_out_rows": sum(self.held_out.values()) or None,
            "held_out": self.held_out or None,
            "held_out_share": self.share,
        }
        return {
            "rows": [{"source": name, "rows": rows} for name, rows in self.rows.items()],
            "steps": self.steps,
            "zero_stage": self.zero_stage,
            "masks": self.masks.as_dict(),
            "masks_proved": self.masks.agreed,
            "masks_looked_at": self.masks.rows,
            "dropped": list(self.dropped),
            **asdict(self.told),
            "stops": list(self.stops),
            "supervised_share": self.supervised_share,
            "longest": self.longest,
            "micro_steps": self.micro_steps,
            "balance": self.balance,
            "fill": self.fill,
            "advice": self.advice,
            "tuning": [asdict(advice) for advice in self.tuning],
            "warnings": list(self.warnings),
            "memory": {"device": self.memory.device, **asdict(self.memory)},
            "proofs": [asdict(proof) for proof in self.proofs],
            **{name: value for name, value in optional.items() if value is not None},
        }


def check_run(run: OpenedRun, fast: bool = False, rows: int = PROBE) -> CheckReport:
    """Raises the first SftError that a run would end with; a proof that does not hold is in the report.

    fast: leave out what takes a model.  rows: so many of the run's first are looked at.
    """
    if not fast:
        import torch  # noqa: F401  # it is needed anyway, and transformers is asked in this process then

    config, merged = run.config, run.resolved_deepspeed
    run_dir = run_folder.locate(config)
    run_folder.refuse_collisions(run_dir, config, run_folder.kept_text(run))
    _check_machine(config)
    notes = refuse_untrainable(run)
    data = RunData.of(run)
    looked = data.train.rows.probe(data.train.steps, rows)
    run_folder.refuse_changes(run_dir, data.facts(), run_folder.checkpoints_of(config, run_dir))
    masks = certify_masks(data.train, looked)
    lengths = [len(sample) for sample in looked.samples]
    notes += far_positions(run.architecture, max(lengths), config.model.path)
    plan = data.packer(config.cluster.most).pack(np.resize(lengths, config.train.samples_per_step).tolist())
    return CheckReport(
        rows={source.name: len(source) for source in data.train.rows.sources},
        share=data.held.count if config.eval.share else None,
        steps=len(data.train.steps),
        preset=_preset(config),
        zero_stage=merged.get("zero_optimization", {}).get("stage", 0),
        masks=masks,
        dropped=tuple(f"{entry.where}: {entry.what}" for entry in looked.entries),
        told=data.told(rows),
        stops=_stops(run, data.encoder),
        longest=max(lengths),
        micro_steps=plan.micro_steps,
        balance=plan.balance,
        fill=plan.fill,
        advice=plan.advice(),
        tuning=tuple(_tuning(run, data, looked)),
        warnings=(*warnings(config), *notes),
        held_out=rows_by_name(data.held_out) if data.held_out else {},
        memory=memory_of_a_rank(config, run.architecture, merged, run.device, masks.supervised / masks.tokens),
        proofs=(*prove_masks(masks), *_of_held_out(data, rows), *([] if fast else _of_model(run, data, looked))),
    )


def _stops(run: OpenedRun, encoder: Encoder) -> tuple[str, ...]:
    """Of an export, in words."""
    words = {token.id: token.content for token in encoder.vocabulary.added_tokens}
    stops = dict.fromkeys((*encoder.stop_ids, *run.model.stops))
    return tuple(words.get(stop, str(stop)) for stop in stops)


def _check_machine(config: RunConfig) -> None:
    """Count GPUs and CPUs where a local Ray would be started: a cluster's are known only once it is joined."""
    if is_local(config):
        have = {"GPU": _gpus() if config.cluster.gpus_per_worker else 0.0, "CPU": float(os.cpu_count() or 1)}
        check_resources(config, have, "this machine")
        refuse_without_login(config.tracking.wandb)


def _gpus() -> float:
    import torch

    return float(torch.cuda.device_count())


def _preset(config: RunConfig) -> str | None:
    train = config.train
    if train.preset == "none":
        return None
    chosen = f"learning_rate {train.learning_rate:g}, {train.schedule}, warmup {train.warmup:g}"
    chosen += f", weight_decay {train.optimizer.weight_decay:g}"
    return f"{train.preset}: {chosen}; what the run file leaves open is from {SOURCES[train.preset]}"


def _tuning(run: OpenedRun, data: RunData, looked: EncodedStep) -> list[Advice]:
    """What the rows that were looked at say of the kind of tuning, as though all others were like them."""
    rows = data.train.steps.order.epoch_length
    supervised = sum(sample.supervised for sample in looked.samples) / len(looked.samples)
    tokens = [0, 0]  # of chats, of plain text
    for id_, sample in zip(looked.ids, looked.samples, strict=True):
        tokens[data.train.rows.layouts[id_.source].format == "text"] += len(sample)
    facts = DataFacts(
        rows=rows,
        supervised=round(supervised * rows),
        epochs=data.train.steps.positions / rows,
        text=tokens[1] / sum(tokens),
    )
    return advise(run.config, run.architecture, facts)


def _of_held_out(data: RunData, rows: int) -> list[Proof]:
    """Of the masks of held-out rows, where there are any."""
    if (feed := data.held_out) is None:
        return []
    return prove_masks(certify_masks(feed, probe(feed, rows)), ", held-out rows")


def _of_model(run: OpenedRun, data: RunData, looked: EncodedStep) -> list[Proof]:
    """Of packs and noise on the model or a small copy of it, and of ranks that train a small copy."""
    from dist_sft.commands.rehearsal import rehearse
    from dist_sft.proofs.noise import prove_noise
    from dist_sft.proofs.packing import prove_packing

    config, samples = run.config, looked.samples
    proofs = prove_packing(config, run.architecture.configuration, samples)
    if config.model.neftune:
        width = run.architecture.get_text_config().hidden_size
        proofs += prove_noise(config.model.neftune, samples, width, config.run.seed)
    return [*proofs, *rehearse(run, samples, data.encoder.template)]
