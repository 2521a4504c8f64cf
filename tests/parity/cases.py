"""All ways to execute one run, and a few of them in which each two choices meet."""

import itertools
from collections import Counter
from dataclasses import dataclass, fields

from tests.parity.by_hand import CLIP, DECAY, EPS, MOMENTUM, RATES

SAMPLES_PER_STEP, ROWS = 7, 30
"""Four steps of 7 samples, and one of 2, for which three ranks are too many. 7 is not a multiple of 2 or 3 either."""
STEPS = 5
LORA = {"kind": "lora", "rank": 4, "alpha": 8}


@dataclass(frozen=True)
class Case:
    """One way to execute the run.

    offload  what ZeRO keeps on the CPU
    packs    one pack per rank and step, two (so gradients are accumulated), or each sample alone (likewise)
    """

    ranks: int = 1
    stage: int = 0
    offload: tuple[str, ...] = ()
    packs: str = "alone"
    recompute: bool = False
    tuning: str = "full"
    optimizer: str = "sgd"

    @property
    def possible(self):
        return {(): 0, ("optimizer",): 1, ("optimizer", "param"): 3}[self.offload] <= self.stage

    @property
    def compiled(self):
        """Whether DeepSpeedCPUAdam runs, which DeepSpeed compiles at first use."""
        return bool(self.offload) and self.optimizer == "adamw"

    def settings(self, base, folder, **model):
        """As run file. model: more settings of the model."""
        zero = {"stage": self.stage, **{f"offload_{part}": {"device": "cpu"} for part in self.offload}}
        if self.stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        chosen = {"momentum": MOMENTUM} if self.optimizer == "sgd" else {"eps": EPS}
        return base | {
            "run": {"name": "parity", "dir": str(folder), "seed": 3},
            "model": base["model"]
            | {"gradient_checkpointing": self.recompute, "tuning": LORA if self.tuning == "lora" else {"kind": "full"}}
            | model,
            "train": {
                "samples_per_step": SAMPLES_PER_STEP,
                "tokens_per_pack": 2048,
                "epochs": 1,
                "packing": self.packs != "alone",
                "micro_steps": 2 if self.packs == "two" else 1,
                "optimizer": {"name": self.optimizer, "weight_decay": DECAY, **chosen},
                "learning_rate": RATES[self.optimizer],
                "schedule": "constant",
                "warmup": 0,
                "clip": CLIP[self.tuning],
            },
            "cluster": {"workers": self.ranks, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": zero},
        }

    def micro_steps(self, samples):
        """Packs of each rank in a step of so many samples."""
        return {"one": 1, "two": 2, "alone": -(-samples // self.ranks)}[self.packs]


AXES = {
    "ranks": (1, 2, 3),
    "stage": (0, 1, 2, 3),
    "offload": ((), ("optimizer",), ("optimizer", "param")),
    "packs": ("one", "two", "alone"),
    "recompute": (False, True),
    "tuning": ("full", "lora"),
    "optimizer": ("sgd", "adamw"),
}
EVERY = [case for values in itertools.product(*AXES.values()) if (case := Case(*values)).possible]


def covering(cases, together=2):
    """Few of the cases in which any choices, so many together, that meet in some case meet; the same ones each time.

    Greedily the case with most new meetings; of several, the one whose choices have been made least so far.
    """
    left, made, chosen = set().union(*(_meetings(case, together) for case in cases)), Counter(), []
    while left:
        best = max(
            cases, key=lambda case: (len(_meetings(case, together) & left), -sum(made[at] for at in _choices(case)))
        )
        chosen.append(best)
        left -= _meetings(best, together)
        made.update(_choices(best))
    return chosen


def _choices(case):
    """Stage and offload are one choice, so that each meets each number of ranks."""
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    return tuple((values | {"stage": (values.pop("stage"), values.pop("offload"))}).items())


def _meetings(case, together):
    return set(itertools.combinations(_choices(case), together))


NOISY = {
    tuning: [
        Case(1, 0, (), "alone", False, tuning, "adamw"),  # what the others are compared with
        Case(1, 0, (), "one", True, tuning, "adamw"),
        Case(2, 2, (), "two", False, tuning, "adamw"),
        Case(2, 3, (), "alone", True, tuning, "adamw"),
        Case(3, 3, (), "one", True, tuning, "adamw"),
    ]
    for tuning in AXES["tuning"]
}
"""Runs with noise on the embeddings, and dropout in the adapters."""


def noise(tuning):
    """Settings of the model for them."""
    return {"neftune": {"alpha": 5}, "tuning": LORA | {"dropout": 0.2} if tuning == "lora" else {"kind": "full"}}
