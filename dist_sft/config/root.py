"""A whole file of settings: right in each of its parts, and together.

Document ─ prepare ─> values ─ pydantic ─> sections ─ checks ─> Root, or one error that names every problem
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import ValidationError, ValidationInfo, model_validator

from dist_sft.config.document import Document
from dist_sft.config.partial import Unknown, partial
from dist_sft.config.problems import MOST_TOLD, Problem, as_error, from_pydantic
from dist_sft.config.section import Section
from dist_sft.config.settings import meant

Check = Callable[[Any], Iterator[Problem]]
"""Takes the sections of a file, and yields what is wrong with them together."""

VALUES = "values"
"""Where a problem is when there is no file."""


class Root(Section):
    """A file whose settings were checked, each and together: there is no other way to make one.

    `of`, `model_validate`, `model_copy` and the constructor raise ConfigError where settings contradict one another.
    """

    checks: ClassVar[tuple[Check, ...]] = ()

    @classmethod
    def prepare(cls, document: Document) -> Document:
        """The document with everything written out that a user may write short or leave to a preset."""
        return document

    @classmethod
    def of(cls, document: Document) -> Self:
        """Strict: no text becomes a number, no true becomes 1.

        Raises:
            ConfigError: with every problem found: keys, values, and settings that contradict one another.
        """
        document = cls.prepare(document)
        try:
            return cls.model_validate_json(json.dumps(document.value), strict=True, context=document)
        except ValidationError as error:
            problems = from_pydantic(error, document, cls)
        raise as_error([*problems, *_contradictions(cls, _judged(cls, document, problems))], document, cls.file)

    @classmethod
    def model_validate(cls, obj: Any, **_: Any) -> Self:
        """As `of`, for a mapping of settings."""
        return obj if isinstance(obj, cls) else cls.of(from_values(obj))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        copy._refuse_contradictions(Document(None, {(): VALUES}))
        return copy

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> Self:
        self._refuse_contradictions(info.context or Document(None, {(): VALUES}))
        return self

    def _refuse_contradictions(self, document: Document) -> None:
        if problems := list(_contradictions(type(self), self)):
            raise as_error(problems, document, self.file)


def from_values(values: Any) -> Document:
    """A document of plain values that stand in no file; paths may be `pathlib` ones. Raises ConfigError."""

    def plain(value: Any) -> str:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"a {type(value).__name__} is not a setting")

    try:
        return Document(json.loads(json.dumps(values, default=plain)), {(): VALUES})
    except (TypeError, ValueError, RecursionError) as error:
        raise as_error([Problem((), str(error), "use text, numbers, true, false, lists and mappings")],
                       Document(None, {(): VALUES})) from None  # fmt: skip


def _judged(root: type[Root], document: Document, problems: list[Problem]) -> Section:
    """The settings that are right, with `Unknown` for those that are not, and for what a misspelt one may stand for."""
    unknown = {problem.path for problem in problems}
    for problem in problems[:MOST_TOLD]:
        unknown.update(at for at, _ in meant(root, problem.path, document.value) if at != problem.path)
    return partial(root, document.value, unknown)


def _contradictions(root: type[Root], sections: Section) -> Iterator[Problem]:
    """What the checks find; a check that comes upon an unknown setting ends there."""
    for check in root.checks:
        try:
            yield from check(sections)
        except Unknown.Asked:
            continue
