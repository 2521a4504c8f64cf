"""What settings there are, where each belongs, and the name that a misspelt one was meant to be."""

import difflib
import re
import types
from collections.abc import Iterator
from typing import Any, get_args

from dist_sft.config.document import Path, dotted
from dist_sft.config.section import Section


def nearest(name: str, names: list[str]) -> str | None:
    """The name most like this one, or None if none is like it."""
    matches = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field may hold: none for a plain value, several for a choice by `kind`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for part in get_args(annotation) for section in sections_in(part)]


def section_at(root: type[Section], path: Path, value: Any) -> type[Section] | None:
    """The section that stands at a path of a file of this kind with this value, or None where none does."""
    section = root
    for part in path:
        value = value[part] if holds(value, part) else None
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        candidates = sections_in(field.annotation) if field else []
        if not candidates:
            return None
        section = chosen(candidates, value)
    return section


USERS_OWN = frozenset({"environment", "template_kwargs", "deepspeed", "secrets", "node_selector"})
"""Settings whose keys are the user's: what stands under one of these may be anything."""


def is_setting(root: type[Section], path: Path, value: Any) -> bool:
    """Whether a path leads to a setting of ours, or into one. value: of the whole file."""
    section, by_number = root, False
    for depth, part in enumerate(path):
        value = value[part] if holds(value, part) else None
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        if field is None and by_number and re.fullmatch(r"-?\d{1,9}", part):
            return True
        if field is None or (part in USERS_OWN and depth + 1 < len(path)):
            return False
        candidates, by_number = sections_in(field.annotation), "dict[" in str(field.annotation)
        if not candidates:
            return by_number or all(isinstance(rest, int) for rest in path[depth + 1 :])
        section = chosen(candidates, value)
    return True


def only_settings(root: type[Section], value: Any, path: Path = ()) -> bool:
    """Whether all that stands at a path of a file with this value is settings of ours."""
    inner = value
    for part in path:
        inner = inner[part] if holds(inner, part) else None
    if path and not is_setting(root, path, value):
        return False
    if isinstance(inner, dict):
        return all(only_settings(root, value, (*path, key)) for key in inner)
    return not isinstance(inner, list) or all(only_settings(root, value, (*path, i)) for i in range(len(inner)))


def meant(root: type[Section], path: Path, value: Any) -> list[tuple[Path, type[Section]]]:
    """The settings, with their sections, that one which does not exist may have been meant to be; nearest first."""
    name, parent = str(path[-1]), path[:-1]
    section = section_at(root, parent, value)
    if section and (near := nearest(name, list(section.model_fields))):
        return [((*parent, near), section)]
    everywhere = list(_all_settings(root, ()))
    if exact := [(at, of) for at, of in everywhere if at[-1] == name]:
        return exact
    near = nearest(name, [str(at[-1]) for at, _ in everywhere])
    return [next((at, of) for at, of in everywhere if at[-1] == near)] if near else []


def suggestion(root: type[Section], path: Path, value: Any) -> str:
    """What to do about a setting that does not exist: the nearest right name, here or in another section."""
    name, parent = str(path[-1]), path[:-1]
    found = meant(root, path, value)
    if found and found[0][0][:-1] == parent and found[0][0][-1] != name:
        return f"did you mean '{found[0][0][-1]}'?"
    if found and found[0][0][-1] == name:
        return " or ".join(_belongs(at, of, parent) for at, of in found[:3])
    if found:
        return f"did you mean '{dotted(found[0][0])}'?"
    section = section_at(root, parent, value)
    siblings = list(section.model_fields) if section else []
    return f"settings of {dotted(parent) or root.file}: {', '.join(siblings)}" if siblings else ""


def _belongs(at: Path, section: type[Section], parent: Path) -> str:
    if at[:-1] == parent and "kind" in section.model_fields:
        return f"{at[-1]} belongs to kind: {get_args(section.model_fields['kind'].annotation)[0]}"
    return f"{at[-1]} belongs " + (f"under {dotted(at[:-1])}" if at[:-1] else "at the left margin")


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


def chosen(candidates: list[type[Section]], value: Any) -> type[Section]:
    """Of the sections that may stand somewhere, the one whose `kind` the value has; the first where it has none."""
    kind = value.get("kind") if isinstance(value, dict) else None
    for candidate in candidates:
        if "kind" in candidate.model_fields and kind in get_args(candidate.model_fields["kind"].annotation):
            return candidate
    return candidates[0]
