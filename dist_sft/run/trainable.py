"""What cannot be trained, said before anything runs: the same for `check --fast`, `plan`, `submit` and `train`.

OpenedRun ─ architecture, tokenizer, weight files ─> SftError, or notes for the user      No weight is read.
"""

from pathlib import Path

from dist_sft.model.complete import refuse_incomplete
from dist_sft.model.headers import config_file
from dist_sft.run.opened import OpenedRun


def refuse_untrainable(run: OpenedRun) -> tuple[str, ...]:
    """Raise the SftError that a run would end with before its first step; returns what a user should know.

    torch is imported only where this config.json, or these weight files, were never seen: see `model.remembered`.
    """
    config, settings = run.config, run.config.model
    cache = Path(config.data.cache).expanduser().absolute() if config.data.cache else None
    return refuse_incomplete(settings, run.architecture, cache)


def is_here(run: OpenedRun) -> bool:
    """Whether the model of a run can be looked at from this machine without downloading anything."""
    return config_file(run.config.model) is not None
