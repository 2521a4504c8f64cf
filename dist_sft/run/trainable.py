"""What cannot be trained, said before anything runs: the same for `check --fast`, `plan`, `submit` and `train`.

OpenedRun ─ architecture, its trial, tokenizer, weight files, compiler ─> SftError, or notes for the user
"""

import os
import shutil
from pathlib import Path
from typing import Any

from dist_sft.core.errors import ConfigError
from dist_sft.model.complete import refuse_incomplete
from dist_sft.model.headers import config_file
from dist_sft.model.supported import refuse_split, refuse_unsupported
from dist_sft.model.trainable import (
    frozen_parts,
    refuse_architecture,
    refuse_experts,
    refuse_positions,
    refuse_tokens,
    refuse_trial,
)
from dist_sft.run.opened import OpenedRun
from dist_sft.run.resources import is_local

COMPILED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
"""Settings of ZeRO++ whose CUDA kernels DeepSpeed compiles when a run starts."""

CUDA = "/usr/local/cuda"
"""Where torch looks for the CUDA toolkit last."""


def refuse_untrainable(run: OpenedRun) -> tuple[str, ...]:
    """Raise the SftError that a run would end with before its first step; returns what a user should know.

    No weight is read. A small copy of the architecture is tried where this config.json was never seen, see
    `model.remembered`.
    """
    config, settings, length = run.config, run.config.model, run.config.data.context_length
    if is_local(config):
        refuse_without_compiler(run.resolved_deepspeed)
    architecture = run.architecture
    refuse_architecture(architecture, settings.path)
    refuse_experts(architecture, settings.path)
    refuse_trial(architecture, settings.path)
    refuse_unsupported(architecture, length, config.train.packing, settings.path)
    refuse_split(architecture, config.train.sequence_parallel, settings.path)
    refuse_positions(architecture, length, settings.path)
    notes = frozen_parts(architecture) + refuse_incomplete(settings, architecture)
    return notes + refuse_tokens(run.vocabulary, architecture, settings.path)


def refuse_without_compiler(deepspeed: dict[str, Any]) -> None:
    """Raise ConfigError where this machine would have to compile CUDA kernels, and has no nvcc."""
    zero = deepspeed.get("zero_optimization", {})
    wanted = [key for key in COMPILED if zero.get(key)]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), CUDA]
    if wanted and not shutil.which("nvcc") and not any(home and Path(home, "bin", "nvcc").is_file() for home in homes):
        raise ConfigError(
            f"{wanted[0]} needs CUDA kernels that DeepSpeed compiles when the run starts, and there is no nvcc here",
            where=f"deepspeed: zero_optimization.{wanted[0]}",
            fix="install the CUDA toolkit of torch's version and set CUDA_HOME, or remove it",
        )


def is_here(run: OpenedRun) -> bool:
    """Whether the model of a run can be looked at from this machine without downloading anything."""
    return config_file(run.config.model) is not None
