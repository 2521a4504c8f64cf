"""What values of a template weigh, and how much a filter or a method makes of them: in steps, and in characters."""

import re
from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError

LONG = 128
"""Characters that are made, copied, searched or compared in one step."""
MOST_TEXT = 1 << 26
"""Characters of any text that a template makes, and items of any list."""
MOST_WALKED = 2_000_000
"""Values that are looked at to weigh one: there the limit of a row is long exceeded."""

_PRODUCT = frozenset({"join", "indent", "wordwrap", "expandtabs", "translate", "tojson", "urlize", "xmlattr"})
"""What makes at most as much as the sizes of all that they get, multiplied."""
SQUARE = frozenset({"striptags", "urlize", "wordwrap", "pprint", "title", "xmlattr", "unescape"})
"""What may go through a text once for each of its letters; no chat template has use for them."""
SLOW = SQUARE | {"sum", "urlencode", "sort", "unique", "groupby", "min", "max", "dictsort", "map", "encode"}
"""What takes longer than by what it gets and makes."""
_SEPARATORS = ("\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
_EACH_LETTER = frozenset({"list", "sort", "unique", "batch", "slice", "map", "select", "reject", "join", "reverse",
                          "min", "max", "groupby", "sum", "dictsort", "selectattr", "rejectattr"})  # fmt: skip
_DIGITS = re.compile(r"\d+")
_MOST_DIGITS = 9


def refuse_long(size: int) -> None:
    """Raises SecurityError."""
    if size > MOST_TEXT:
        raise SecurityError(f"a text of more than {MOST_TEXT:,} characters")


def is_brief(value: Any) -> bool:
    """Whether a value is so small that nothing is paid for it."""
    kind = type(value)
    return len(value) <= LONG if kind is str else abs(value) <= LONG if kind is int else kind in _PLAIN


def steps_of(value: Any, look: Callable[[Any], None] | None = None) -> int:
    """Steps that it takes to go through all of a value: what is in it, and in that, as often as it is there.

    look: is shown each value that is neither plain nor a collection.
    """
    kind = type(value)
    if kind is str:
        return len(value) // LONG
    if kind in _PLAIN:
        return 0
    steps, waiting = 0, [iter((value,))]
    while waiting:
        for one in waiting[-1]:
            steps += 1
            kind = type(one)
            if kind is str:
                if len(one) > LONG:
                    steps += len(one) // LONG
            elif kind in _PLAIN:
                continue
            elif (inner := _inside(one, kind)) is not None:
                waiting.append(inner)
                break
            elif look:
                look(one)
        else:
            waiting.pop()
        if steps > MOST_WALKED:
            break
    return steps


def _inside(value: Any, kind: type) -> Iterator[Any] | None:
    if kind is dict:
        return chain(value, value.values())
    if kind is list or kind is tuple or kind in _VIEWS:
        return iter(value)
    if isinstance(value, str | bytes | range):
        return iter(range(0, len(value), LONG))
    if isinstance(value, Mapping):
        return chain(value, value.values())
    return iter(value) if isinstance(value, list | tuple | set | frozenset) else None


_PLAIN = frozenset({bool, int, float, type(None)})
_VIEWS = frozenset({type({}.keys()), type({}.values()), type({}.items())})


def most_made(name: str, owner: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Characters (or items) that a filter or a method makes at most."""
    more = (*given, *named.values())
    if name == "format":
        return _formatted(str(owner), more)
    if name == "replace" and isinstance(owner, str):
        old, new = (named.get(key, given[i] if len(given) > i else "") for i, key in enumerate(("old", "new")))
        times = owner.count(old) if isinstance(old, str) else len(owner)
        return len(owner) + times * _amount(new)
    if name in ("split", "rsplit", "splitlines") and isinstance(owner, str):
        return LONG * _pieces(name, owner, more[0] if more else None)
    size = _amount(owner, number=False)
    if name in _EACH_LETTER and isinstance(owner, str | bytes | range):
        size *= LONG
    if name in _PRODUCT:
        for one in more:
            size = (size + 1) * (_amount(one) + 1)
        return size
    return size + sum(map(_amount, more)) if isinstance(owner, Sized) or more else 0


def heavy(name: str, owner: Any, named: Mapping[str, Any]) -> int:
    """Steps beyond those that a size explains."""
    if name in SQUARE:
        return (_amount(owner, number=False) >> 4) ** 2 >> 8
    if name == "urlencode" or name == "encode":
        return _amount(owner, number=False) // 2
    if name in ("sort", "unique", "groupby", "min", "max", "dictsort"):
        return 4 * steps_of(owner)
    if name == "sum" and named.get("start", 0) != 0:
        return int(steps_of(owner) ** 2) >> 8
    return 0


def _pieces(name: str, text: str, separator: Any) -> int:
    if name == "splitlines":
        return sum(map(text.count, _SEPARATORS))
    return text.count(separator) if isinstance(separator, str) and separator else len(text) // 4


def _amount(value: Any, number: bool = True) -> int:
    """number: a number may be the width of something."""
    kind = type(value)
    if kind is str:
        return len(value)
    if kind is int:
        return abs(value) if number else 1
    if kind in _PLAIN:
        return 1
    return len(value) if isinstance(value, str | bytes | range) else steps_of(value)


def _formatted(form: str, given: tuple[Any, ...]) -> int:
    """Of `%` and `format`: as many times the largest value as there are fields, and all widths that stand in it, or
    that are given."""
    digits = _DIGITS.findall(form)
    if any(len(run) > _MOST_DIGITS for run in digits):
        return MOST_TEXT + 1
    open_width = "*" in form or "{" in form.replace("{{", "").partition("{")[2].partition("}")[0]
    fields = form.count("%") + form.count("{")
    largest = max((max(_amount(one, number=open_width), steps_of(one) * LONG) for one in given), default=0)
    return len(form) + fields * (largest + 1) + sum(map(int, digits))
