"""What settings there are, where each belongs, and the name that a misspelt one was meant to be."""

import difflib
import types
from collections.abc import Iterator
from typing import Any, get_args

from dist_sft.config.document import Path, dotted
from dist_sft.config.sections import RunConfig, Section


def nearest(name: str, names: list[str]) -> str | None:
    """The name most like this one, or None if none is like it."""
    matches = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold: none for a plain value, several for a choice by `kind`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for part in get_args(annotation) for section in sections_in(part)]


def section_at(path: Path, value: Any) -> type[Section] | None:
    """The section that stands at a path of a run file with this value, or None where none does."""
    section: type[Section] = RunConfig
    for part in path:
        value = value[part] if holds(value, part) else None
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        candidates = sections_in(field.annotation) if field else []
        if not candidates:
            return None
        section = _chosen(candidates, value)
    return section


def suggestion(path: Path, value: Any) -> str:
    """What to do about a setting that does not exist: the nearest right name, here or in another section."""
    name, parent = str(path[-1]), path[:-1]
    section = section_at(parent, value)
    siblings = list(section.model_fields) if section else []
    if near := nearest(name, siblings):
        return f"did you mean '{near}'?"
    places = list(_all_settings(RunConfig, ()))
    exact = [(place, of) for place, of in places if place[-1] == name]
    if exact:
        return " or ".join(_belongs(place, of, parent) for place, of in exact[:3])
    if near := nearest(name, [str(place[-1]) for place, _ in places]):
        place = next(place for place, _ in places if place[-1] == near)
        return f"did you mean '{dotted(place)}'?"
    return f"settings of {dotted(parent) or 'a run file'}: {', '.join(siblings)}" if siblings else ""


def _belongs(place: Path, section: type[Section], parent: Path) -> str:
    if place[:-1] == parent and "kind" in section.model_fields:
        return f"{place[-1]} belongs to kind: {get_args(section.model_fields['kind'].annotation)[0]}"
    return f"{place[-1]} belongs " + (f"under {dotted(place[:-1])}" if place[:-1] else "at the left margin")


def _all_settings(section: type[Section], path: Path) -> Iterator[tuple[Path, type[Section]]]:
    for name, field in section.model_fields.items():
        yield (*path, name), section
        for inner in sections_in(field.annotation):
            yield from _all_settings(inner, (*path, name))


def holds(value: Any, part: str | int) -> bool:
    """Whether value[part] is there."""
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _chosen(candidates: list[type[Section]], value: Any) -> type[Section]:
    kind = value.get("kind") if isinstance(value, dict) else None
    for candidate in candidates:
        if "kind" in candidate.model_fields and kind in get_args(candidate.model_fields["kind"].annotation):
            return candidate
    return candidates[0]
