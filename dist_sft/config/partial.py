"""The right settings of a file in which some are wrong, so that contradictions among the right ones are found, too."""

import types
from collections.abc import Collection
from typing import Any, NoReturn, get_args, get_origin

from dist_sft.config.document import Path
from dist_sft.config.section import Section
from dist_sft.config.settings import chosen, sections_in


class Unknown:
    """Stands for a setting that is wrong or missing: whatever is done with it raises `Asked`, but for `is None`."""

    class Asked(Exception):
        """A check needed a setting that is not known."""

    def _ask(self, *_: object) -> NoReturn:
        raise Unknown.Asked

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __contains__ = _ask
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __floordiv__ = _ask
    __rfloordiv__ = __neg__ = __getattr__ = __getitem__ = __format__ = __str__ = _ask
    __hash__ = object.__hash__


UNKNOWN = Unknown()


def partial(section: type[Section], value: Any, unknown: Collection[Path], path: Path = ()) -> Section:
    """A section that was not validated: `UNKNOWN` at the given paths and for what is missing, defaults as ever.

    value: of the section, as the file has it, all right but for what stands at unknown paths.
    """
    given = value if isinstance(value, dict) else {}
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        here = (*path, name)
        if here in unknown or (name not in given and field.is_required()):
            fields[name] = UNKNOWN
        elif name in given:
            fields[name] = _partial_value(field.annotation, given[name], unknown, here)
        else:
            fields[name] = field.get_default(call_default_factory=True)
    return section.model_construct(**fields)


def _partial_value(annotation: Any, value: Any, unknown: Collection[Path], path: Path) -> Any:
    if path in unknown:
        return UNKNOWN
    if isinstance(value, list):
        return tuple(_partial_value(annotation, item, unknown, (*path, i)) for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if (inner := _values_of_mapping(annotation)) is not None:
        return {key: _partial_value(inner, item, unknown, (*path, key)) for key, item in value.items()}
    candidates = sections_in(annotation)
    return partial(chosen(candidates, value), value, unknown, path) if candidates else value


def _values_of_mapping(annotation: Any) -> Any:
    """The type of the values where the annotation is a dict of names that the user chooses."""
    for part in (annotation, *(get_args(annotation) if get_origin(annotation) in (types.UnionType,) else ())):
        if get_origin(part) is dict:
            return get_args(part)[1]
    return None
