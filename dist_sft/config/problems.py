"""What pydantic found wrong -> sentences with a place and a way out.

run.yaml:9: model.tuning.rnak is not a setting
  fix: did you mean 'rank'?
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic_core import ErrorDetails, ValidationError

from dist_sft.config.document import Document, Path, dotted, shortened
from dist_sft.config.section import Section
from dist_sft.config.settings import holds, is_setting, nearest, section_at, sections_in, suggestion
from dist_sft.core.errors import ConfigError, Lines
from dist_sft.core.redact import redact_value


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file of settings: the setting it is about, what is wrong, how to fix it."""

    path: Path
    what: str
    fix: str = ""


MOST_TOLD = 9
"""Problems that a message tells one by one."""


def as_error(problems: Sequence[Problem], document: Document, of: str = "the run file") -> ConfigError:
    """All problems as one error, each at its line; a single one is the error itself, and of a crowd the first."""
    told = problems if len(problems) <= MOST_TOLD + 1 else problems[:MOST_TOLD]
    errors = [ConfigError(problem.what, where=document.where(problem.path), fix=problem.fix) for problem in told]
    if len(errors) == 1:
        return errors[0]
    lines = [f"{len(problems):,} problems in {of}", *map(str, errors)]
    if told is not problems:
        lines.append(f"and {len(problems) - len(told):,} more")
    return ConfigError(Lines("\n".join(lines)))


def from_pydantic(error: ValidationError, document: Document, root: type[Section]) -> list[Problem]:
    """Problems in the order of the settings; the branches of a union are joined into one.

    Those of a crowd that nobody is told have no words: to find the name that a setting was meant to have takes long.
    """
    by_path: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_real_path(details, document.value), []).append(details)
    crowd = len(by_path) > MOST_TOLD + 1
    return [
        Problem(path, "") if crowd and i >= MOST_TOLD else _problem(root, path, details, document.value)
        for i, (path, details) in enumerate(by_path.items())
    ]


def _real_path(details: ErrorDetails, value: Any) -> Path:
    """pydantic's loc without the names of union branches, which no run file holds."""
    path: list[str | int] = []
    for i, part in enumerate(details["loc"]):
        last = i == len(details["loc"]) - 1
        if holds(value, part):
            value = value[part]
            path.append(part)
        elif last and details["type"] == "missing":
            path.append(part)
    if details["type"].startswith("union_tag"):
        path.append(details["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _problem(root: type[Section], path: Path, errors: list[ErrorDetails], value: Any) -> Problem:
    key, first = shortened(dotted(path)) or root.file, errors[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(path, f"{key} is not a setting", suggestion(root, path, value))
    if kind == "missing":
        return Problem(path, f"{key} is missing", _describe(root, path, value))
    if kind == "union_tag_not_found":
        return Problem(path, f"{key} is missing", f"add {path[-1]}: one of {_tags(_kinds(root, path, value))}")
    if kind == "union_tag_invalid":
        return _not_one_of(path, key, context["tag"], context["expected_tags"])
    if kind == "literal_error":
        given = path[-1] if first["loc"][-1] == "[key]" else first["input"]
        return _not_one_of(path, key, given, context["expected"])
    if kind in ("too_short", "string_too_short"):
        return Problem(path, f"{key} is empty", _describe(root, path, value))
    wanted = " or ".join(dict.fromkeys(_wanted(error) for error in errors))
    if not is_setting(root, path, value):
        return Problem(path, f"{key} is not {wanted}", 'write it with quotes: "..."' if wanted == "text" else "")
    given = first["input"]
    shown = _kind(given) if wanted == _KINDS["model"] else show(given)  # what stands for a section is no setting
    return Problem(path, f"{key} is {shown}, not {wanted}", _retype(errors, wanted))


def _kind(value: Any) -> str:
    """What a value is, without saying it; a short number is shown."""
    if isinstance(value, bool) or value is None or (isinstance(value, (int, float)) and abs(value) < 1000):
        return show(value)
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "a number"


def _kinds(root: type[Section], path: Path, value: Any) -> list[str]:
    """The kinds of section that may stand where path, a discriminator, is missing."""
    parent = section_at(root, path[:-2], value)
    field = parent.model_fields.get(str(path[-2])) if parent and len(path) > 1 else None
    candidates = sections_in(field.annotation) if field else []
    return [get_args(section.model_fields[str(path[-1])].annotation)[0] for section in candidates]


def _not_one_of(path: Path, key: str, given: Any, expected: str) -> Problem:
    names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
    near = nearest(str(given), names)
    fix = f"did you mean '{near}'?" if near else f"use {_tags(names)}"
    return Problem(path, f"{key} is {show(given)}, not one of {', '.join(names)}", fix)


def _tags(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a section of key: value",
    "model": "a section of key: value",
    "model_attributes": "a section of key: value",
}
_BOUNDS = {
    "greater_than": ("a number above", "gt"),
    "greater_than_equal": ("a number of at least", "ge"),
    "less_than": ("a number below", "lt"),
    "less_than_equal": ("a number of at most", "le"),
}


def _wanted(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{words} {context[bound]:g}"
    if kind == "finite_number":
        return "a finite number"
    if kind in ("too_long", "missing_positional_only_argument"):
        return f"a list of {context.get('max_length', 'fewer')} entries"
    for ending in ("_type", "_parsing", "_from_float"):
        if kind.endswith(ending) and kind.removesuffix(ending) in _KINDS:
            return _KINDS[kind.removesuffix(ending)]
    return error["msg"]


def _retype(errors: list[ErrorDetails], wanted: str) -> str:
    """How to write the value that was meant, where that can be told."""
    given = errors[0]["input"]
    if wanted == "a whole number" and isinstance(given, float) and given.is_integer():
        return f"write {int(given)}"
    if "text" in wanted and isinstance(given, (int, float, bool)):
        return f'write "{show(given)}" with quotes'
    if wanted in ("a number", "a whole number") and isinstance(given, str) and _is_number(given):
        return "write it without quotes"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _describe(root: type[Section], path: Path, value: Any) -> str:
    section = section_at(root, path[:-1], value)
    field = section.model_fields.get(str(path[-1])) if section else None
    return f"add {dotted(path)}" + (f": {field.description}" if field and field.description else "")


def show(value: Any) -> str:
    """A value as a run file writes it, shortened, and without what is secret in a URL.

    Of a section, or a list of them, whose keys nobody has judged, no value is shown.
    """
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        return "a list of sections"
    text = redact_value(value if isinstance(value, str) else json.dumps(value, default=str))
    text = shortened(text if len(text) <= 60 else text[:57] + "...")
    return f"'{text}'" if isinstance(value, str) else text
