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
        value = {**value, "data": {**data, "sources": _sources(data["sources"])}}
    if isinstance(evaluation, dict) and "source" in evaluation:
        evaluation = {**evaluation, "source": _source(evaluation["source"])}
        value = {**value, "eval": evaluation}
    if isinstance(evaluation, dict) and "sources" in evaluation:
        value = {**value, "eval": {**evaluation, "sources": _sources(evaluation["sources"])}}
    return value


def _sources(value: Any) -> list[Any]:
    return [_source(source) for source in (value if isinstance(value, list) else [value])]


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value
