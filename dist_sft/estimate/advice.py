"""Does the kind of tuning fit the data? Rough rules from the literature, each with the figures that it was put to.

run file, architecture, DataFacts -> Advice, Advice, ... -> lines

Sources:
    Biderman et al., 2024        LoRA Learns Less and Forgets Less
    Schulman et al., 2025        LoRA Without Regret (Thinking Machines)
    Allen-Zhu and Li, 2024       Physics of Language Models: Part 3.3, Knowledge Capacity Scaling Laws
    Ibrahim et al., 2024         Simple and Scalable Strategies to Continually Pre-train Large Language Models
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dist_sft.config.advice import RATES
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import LoraTuning
from dist_sft.model.architecture import Architecture
from dist_sft.model.capacity import Trained, count_trained

BITS_PER_PARAMETER = 2.0
"""That a trained parameter can hold (Allen-Zhu and Li, 2024)."""
BITS_PER_TOKEN = 1.0
"""That a supervised token tells, at most: a loss of one bit (Schulman et al., 2025)."""
LOW_RANK, HIGH_RANK = 16, 256
"""The lowest and the highest rank that Biderman et al. trained."""
BASE_RATE, ADAPTER_FACTOR, SHORT_FACTOR, SHORT = 5e-5, 10.0, 15.0, 100
"""Learning rate of full tuning at a width of 2,000; by how much adapters take more; in fewer steps than SHORT."""
WIDTH_POWERS = {"llama": 0.781, "qwen": 0.0775}
"""Power of 2,000 / width by family (Schulman et al., 2025, and the recipe published with it)."""
ALPHA = 32.0
"""Of the adapters that the learning rate was measured with."""
TOLERANCE = 4.0
"""Factor on a learning rate within which we say nothing."""
MODEST_STEP, LARGE_STEP = 32, 256
"""Samples per step at which adapters keep up with full tuning, and fall behind it (Schulman et al., 2025)."""
REPLAY = 0.05
"""Share of replayed text that was enough against forgetting under a weak shift (Ibrahim et al., 2024)."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What there is to learn.

    rows        different rows
    supervised  tokens that are learned in one pass over them
    epochs      passes
    text        share of all tokens that is plain text: a little is replay, most is continued pre-training
    """

    rows: int
    supervised: int
    epochs: float
    text: float

    @property
    def bits(self) -> float:
        """Upper bound of the information in it; a second pass adds none."""
        return self.supervised * BITS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Advice:
    """One rule's answer.

    level    fine: nothing to do; consider: there may be something better; change: this is likely to go wrong
    figures  what it was computed from, by name
    why      the rule, and its source
    set      what to write into the run file; may be empty
    """

    topic: str
    level: Literal["fine", "consider", "change"]
    verdict: str
    figures: dict[str, float]
    why: str
    set: str = ""


def advise(config: RunConfig, architecture: Architecture, data: DataFacts) -> list[Advice]:
    """What the rules say of a run. Pure; takes the time to lay out the model without weights."""
    trained = count_trained(architecture.layout, config.model.tuning)
    everywhere = count_trained(architecture.layout, LoraTuning(kind="lora", rank=1))
    change = change_of(data, everywhere.per_rank)
    text = architecture.get_text_config()
    advice = [
        _change(config, data, everywhere.per_rank, change),
        _capacity(data, trained),
        _rate(config, architecture.model_type, text.hidden_size, data),
        _forgetting(config, data, change),
    ]
    if isinstance(config.model.tuning, LoraTuning):
        advice += [_targets(trained), _batch(config)]
    return advice


def lines(advice: Sequence[Advice]) -> Iterator[str]:
    """For a terminal: the verdict with its figures, then what to set and why, where there is something to do."""
    for one in advice:
        figures = ", ".join(f"{name} {_number(value)}" for name, value in one.figures.items())
        yield f"{one.topic}: {one.verdict} ({figures})"
        if one.level != "fine":
            yield from (f"  {text}" for text in (one.set and f"set {one.set}", f"why: {one.why}") if text)


def _number(value: float) -> str:
    if value >= 1e6:
        return next(
            f"{value / unit:.3g}{name}" for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= unit
        )
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


Change = Literal["behaviour", "knowledge", "between"]


def change_of(data: DataFacts, per_rank: int) -> Change:
    """Whether data teach how to answer, or what is so: by what an adapter on all linear layers could hold of them.

    per_rank: parameters that each rank of such an adapter has.
    """
    if data.text >= 0.5 or data.bits > BITS_PER_PARAMETER * per_rank * HIGH_RANK:
        return "knowledge"
    return "behaviour" if data.bits <= BITS_PER_PARAMETER * per_rank * LOW_RANK else "between"


def _change(config: RunConfig, data: DataFacts, per_rank: int, change: Change) -> Advice:
    adapter = config.model.tuning.kind == "lora"
    figures = {
        "supervised tokens": float(data.supervised),
        "share of plain text": data.text,
        f"bits at rank {LOW_RANK} on all layers": BITS_PER_PARAMETER * per_rank * LOW_RANK,
        f"bits at rank {HIGH_RANK}": BITS_PER_PARAMETER * per_rank * HIGH_RANK,
    }
    why = (
        "on billions of tokens LoRA learns less than full tuning, and forgets less; on about 100,000 instructions high "
        "ranks come close (Biderman et al., 2024), and where the adapter has room it learns as much (Schulman et al., "
        "2025)"
    )
    if change == "knowledge":
        verdict = "a change of knowledge" + (": an adapter would learn less of it than full tuning" if adapter else "")
        return Advice("change", "change" if adapter else "fine", verdict, figures, why,
                      "model.tuning={kind: full}" if adapter else "")  # fmt: skip
    if change == "behaviour":
        verdict = "a change of behaviour" + ("" if adapter else ": an adapter would do as well, and forget less")
        return Advice("change", "fine" if adapter else "consider", verdict, figures, why,
                      "" if adapter else "model.tuning={kind: lora} and ten times the learning rate")  # fmt: skip
    verdict = "between a change of behaviour and one of knowledge"
    return Advice("change", "fine", verdict, figures, why)


def _capacity(data: DataFacts, trained: Trained) -> Advice:
    room = BITS_PER_PARAMETER * trained.total
    figures = {"trained parameters": float(trained.total), "bits that fit": room, "bits at most": data.bits}
    why = (
        "a parameter holds about 2 bits (Allen-Zhu and Li, 2024: after 1,000 exposures; 1 bit after 100), a supervised "
        "token tells at most about 1; an adapter that is full falls behind full tuning (Schulman et al., 2025)"
    )
    if data.bits <= room / 2:
        return Advice("capacity", "fine", "there is room for what the data can tell", figures, why)
    if not trained.rank:
        return Advice("capacity", "consider", "the data may tell more than the model can hold", figures, why)
    missing = data.bits / BITS_PER_PARAMETER - trained.norms - trained.whole
    rank = max(trained.rank, 2 ** math.ceil(math.log2(max(missing / trained.per_rank, 1))))
    fix = f"model.tuning.rank={rank}" if rank <= HIGH_RANK else "model.tuning={kind: full}"
    if data.bits <= room:
        return Advice("capacity", "fine", "the adapter can just hold what the data can tell", figures, why)
    figures["rank that would hold them"] = float(rank)
    return Advice("capacity", "change", "the adapter is too small for the data", figures, why, fix)


def usual_rates(model_type: str, width: int) -> tuple[float, float]:
    """Lowest and highest learning rate that is usual for full tuning: 5e-5 * (2000 / width) ** power of the family."""
    powers = [power for family, power in WIDTH_POWERS.items() if family in model_type] or list(WIDTH_POWERS.values())
    rates = [BASE_RATE * (2000 / width) ** power for power in powers]
    return min(rates), max(rates)


def _rate(config: RunConfig, model_type: str, width: int, data: DataFacts) -> Advice:
    tuning, rate = config.model.tuning, config.train.learning_rate
    steps = config.train.steps or math.ceil(data.rows * data.epochs / config.train.samples_per_step)
    low, high = usual_rates(model_type, width)
    figures = {"learning rate": rate, "usual from": low, "to": high, "steps": float(steps)}
    why = f"full tuning takes {BASE_RATE:g} at a width of 2,000, less at larger ones (Schulman et al., 2025)"
    if isinstance(tuning, LoraTuning):
        factor = (SHORT_FACTOR if steps < SHORT else ADAPTER_FACTOR) * ALPHA / (tuning.scale * tuning.rank)
        low, high = low * factor, high * factor
        figures |= {"usual from": low, "to": high, "scale times rank": tuning.scale * tuning.rank}
        why = (
            "LoRA takes about 10 times the learning rate of full tuning, 15 times in short runs, at any rank, where "
            "scale times rank is 32, and less where it is more (Schulman et al., 2025)"
        )
    fix = f"train.learning_rate={float(f'{math.sqrt(low * high):.1g}'):g}"
    kind = "an adapter" if isinstance(tuning, LoraTuning) else "full tuning"
    lowest, highest = RATES[tuning.kind]
    level: Literal["consider", "change"] = "consider" if lowest <= rate <= highest else "change"
    if level == "consider":
        why += f"; published runs have from {lowest:g} to {highest:g}"
    if rate < low / TOLERANCE:
        return Advice("learning rate", level, f"low for {kind}", figures, why, fix)
    if rate > high * TOLERANCE:
        return Advice("learning rate", level, f"high for {kind}", figures, why, fix)
    return Advice("learning rate", "fine", f"usual for {kind}", figures, why)


def _targets(trained: Trained) -> Advice:
    figures = {"share of linear weights with an adapter": trained.covered, "trained parameters": float(trained.total)}
    why = (
        "adapters on attention alone learn less than adapters on all linear layers, even with as many parameters; most "
        "of it is in the MLP (Schulman et al., 2025; Biderman et al., 2024)"
    )
    if trained.covered > 0.95:
        return Advice("targets", "fine", "adapters on all linear layers", figures, why)
    verdict = "adapters on a part of the linear layers"
    return Advice("targets", "consider", verdict, figures, why, "model.tuning.targets=all-linear")


def _batch(config: RunConfig) -> Advice:
    size = config.train.samples_per_step
    figures = {"samples per step": float(size)}
    why = (
        f"LoRA falls behind full tuning as steps grow, at any rank: little at {MODEST_STEP} samples, much at "
        f"{LARGE_STEP} (Schulman et al., 2025)"
    )
    if size <= 2 * MODEST_STEP:
        return Advice("step size", "fine", "small enough for an adapter", figures, why)
    level: Literal["consider", "change"] = "change" if size >= LARGE_STEP else "consider"
    return Advice("step size", level, "large for an adapter", figures, why, f"train.samples_per_step={MODEST_STEP}")


def _forgetting(config: RunConfig, data: DataFacts, change: Change) -> Advice:
    adapter = config.model.tuning.kind == "lora"
    figures = {"share of plain text": data.text}
    why = (
        f"LoRA keeps more of what the base model could (Biderman et al., 2024); {REPLAY:.0%} of replayed text keeps "
        "most of it in full tuning (Ibrahim et al., 2024)"
    )
    if adapter or data.text >= REPLAY / 2:
        verdict = "an adapter forgets less" if adapter else "text is among the data"
        return Advice("forgetting", "fine", verdict, figures, why)
    level: Literal["fine", "consider", "change"] = "change" if change == "knowledge" else "consider"
    return Advice("forgetting", level, "nothing keeps what the base model could", figures, why,
                  f"one more of data.sources with format: text and token_share: {REPLAY:g}")  # fmt: skip
