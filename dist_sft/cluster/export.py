"""From a run folder to a model that others load."""

import shutil
from pathlib import Path

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from dist_sft.cluster import run_folder
from dist_sft.core.errors import CheckpointError


def export(run_dir: Path, out: Path, step: int | None = None, merge: bool = False) -> Path:
    """Write `out` from a checkpoint (the newest one, or that of `step`): model or adapter, tokenizer, template.

    merge: add a LoRA adapter to the base model's weights. `out` appears whole or not at all. Raises SftError.
    """
    config = run_folder.read_config(run_dir)
    checkpoint = newest(run_dir, step)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("the output is there already", where=str(out), fix="give a new folder, or remove it")
    if merge and config.model.tuning.kind != "lora":
        raise CheckpointError(
            "--merge is for adapters; this run trained all weights", where=str(run_dir), fix="leave --merge out"
        )
    from transformers.utils.logging import disable_progress_bar

    from dist_sft.model.saved import save_adapter, save_full

    disable_progress_bar()
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run_dir / "tokenizer", partial)
    stop_ids = run_folder.read_facts(run_dir)["stop_ids"]
    weights = consolidated(checkpoint)
    if config.model.tuning.kind == "lora":
        save_adapter(config.model, weights, stop_ids, partial, merge)
    else:
        save_full(config.model, weights, stop_ids, partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out
