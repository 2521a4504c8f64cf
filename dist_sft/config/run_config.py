"""A whole run file."""

from typing import Any

from dist_sft.config.consistency import CHECKS
from dist_sft.config.document import Document
from dist_sft.config.presets import apply_preset
from dist_sft.config.root import Root
from dist_sft.config.sections import RunSections


class RunConfig(RunSections, Root):
    """A run file whose settings make sense together, with what its preset fills in."""

    file = "the run file"
    checks = CHECKS

    @classmethod
    def prepare(cls, document: Document) -> Document:
        return apply_preset(Document(with_shorthand(document.value), document.locations))


def with_shorthand(value: Any) -> Any:
    """Write out what may be written short: a source that is only its path."""
    if not isinstance(value, dict):
        return value
    data, evaluation = value.get("data"), value.get("eval")
    if isinstance(data, dict) and "sources" in data:
        sources = data["sources"] if isinstance(data["sources"], list) else [data["sources"]]
        value = {**value, "data": {**data, "sources": [_source(source) for source in sources]}}
    if isinstance(evaluation, dict) and "source" in evaluation:
        value = {**value, "eval": {**evaluation, "source": _source(evaluation["source"])}}
    return value


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value
