"""The resolved config: every setting, also those left at their default, for the run folder and for W&B."""

from typing import Any

import yaml

from dist_sft.config.redact import redacted
from dist_sft.config.run_config import RunConfig


def resolved(config: RunConfig) -> dict[str, Any]:
    """All settings as JSON values; loading them again gives the same config."""
    return config.model_dump(mode="json")


def resolved_yaml(config: RunConfig) -> str:
    """All settings as YAML text without secrets, in the order of the sections."""
    text: str = yaml.safe_dump(redacted(resolved(config)), sort_keys=False, allow_unicode=True, width=120)
    return text
