"""From a run folder to a model that others load."""

import shutil
from pathlib import Path

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest_in
from dist_sft.checkpoint.starts import starts_in
from dist_sft.config.advice import template_settings
from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import reading, writing
from dist_sft.core.ownership import MARK, publish, scratch
from dist_sft.model.weights import check_weights
from dist_sft.run import folder as run_folder


def export(run_dir: Path, out: Path, step: int | None = None, merge: bool = False) -> Path:
    """Write `out` from a checkpoint (the newest one, or that of `step`): model or adapter, tokenizer, template.

    merge: add a LoRA adapter to the base model's weights. `out` appears whole or not at all. Raises SftError.
    """
    run_dir, out = run_dir.absolute(), out.absolute()
    config = run_folder.read_config(run_dir)
    checkpoint = newest_in(run_folder.checkpoints_of(config, run_dir), step)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("the output is there already", where=str(out), fix="give a new folder, or remove it")
    if merge and config.model.tuning.kind != "lora":
        raise CheckpointError(
            "--merge is for adapters; this run trained all weights", where=str(run_dir), fix="leave --merge out"
        )
    run_folder.refuse_unwritable(out, "give another output folder")
    if config.model.tuning.kind == "lora":
        check_weights(config.model)
    with writing(out), scratch(out.parent, out.name) as made:
        _write(run_dir, checkpoint, config.model, made, merge)
        publish(made, out)
    return out


def notes(run_dir: Path, merge: bool) -> list[str]:
    """What who serves an export must know, since nothing in it says so to transformers."""
    from dist_sft.model.generation import stops_of_base

    config, stop_ids = run_folder.read_config(run_dir), run_folder.read_stop_ids(run_dir)
    found = template_settings(config)
    adapts = config.model.tuning.kind == "lora" and not merge
    if adapts and set(stop_ids) - set(stops_of_base(config.model)):
        found.append(
            "the base model does not stop on every token that training taught as an end, and transformers and peft use "
            "its generation config: call generate(..., generation_config=GenerationConfig.from_pretrained(OUT)), or "
            "export with --merge"
        )
    return found


def _write(run_dir: Path, checkpoint: Path, model: ModelSection, out: Path, merge: bool) -> None:
    from transformers.utils.logging import disable_progress_bar

    from dist_sft.model.saved import save_adapter, save_full

    disable_progress_bar()
    with reading(run_dir / "tokenizer"):
        shutil.copytree(run_dir / "tokenizer", out, ignore=shutil.ignore_patterns(MARK), dirs_exist_ok=True)
    stop_ids = run_folder.read_stop_ids(run_dir)
    weights = consolidated(checkpoint)
    if model.tuning.kind == "lora":
        save_adapter(model, weights, stop_ids, out, merge, starts_in(checkpoint))
    else:
        save_full(model, weights, stop_ids, out)
