"""On which tokens an export stops: those of the base model, and those that training teaches as ends of answers."""

from pathlib import Path

from transformers import GenerationConfig

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.configuration import load_configuration

FILE = "generation_config.json"


def generation_of(settings: ModelSection, stop_ids: list[int]) -> GenerationConfig:
    """The base model's generation config, which also stops on `stop_ids`: these first, in their order.

    Raises ModelError where the base model's folder has a generation config that cannot be read.
    """
    try:
        generation = GenerationConfig.from_pretrained(settings.path, revision=settings.revision or "main")
    except (OSError, ValueError) as error:  # a base model need not have one
        if (Path(settings.path) / FILE).exists():
            raise ModelError(
                f"cannot be read: {error}",
                where=str(Path(settings.path) / FILE),
                fix="correct the file, or remove it: then the tokens on which the export stops come from config.json",
            ) from error
        generation = GenerationConfig.from_model_config(load_configuration(settings))
    before = generation.eos_token_id
    known = before if isinstance(before, list) else [] if before is None else [before]
    generation.eos_token_id = [*dict.fromkeys((*stop_ids, *known))]
    return generation


def stops_of_base(settings: ModelSection) -> list[int]:
    """Ids on which generation with the base model stops. Raises ModelError as `generation_of`."""
    stops: list[int] = generation_of(settings, []).eos_token_id
    return stops


def save_generation(settings: ModelSection, stop_ids: list[int], out: Path) -> None:
    """Write the generation config of an export. `save_pretrained` would refuse some that published models have."""
    generation_of(settings, stop_ids).to_json_file(out / FILE, use_diff=True, keys_to_pop=["compile_config"])
