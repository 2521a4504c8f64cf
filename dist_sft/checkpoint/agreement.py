"""Rank 0 acts, and all ranks learn how it went: none is left waiting for one that has raised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dist_sft.core.errors import SftError
from dist_sft.core.files import writing


def on_rank_0(folder: Path, action: Callable[[], Any]) -> Any:
    """What `action` returned on rank 0, on every rank; or what it raised. A collective.

    folder: what the action works on; a failure of its storage becomes a StorageError that names it.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            with writing(folder):
                outcome = [action(), None]
        except SftError as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome, src=0)
    value, failure = outcome
    if failure is not None:
        raise failure
    return value
