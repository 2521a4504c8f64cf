"""Jinja's sandbox for templates from strangers, whose work, memory and words are bounded, on every machine alike.

template ─ _Priced: what may cost more than its length goes through a function that pays ─> Sandbox.spend

What is paid for: turns of loops, calls, and the size of what is made, compared, searched or written: texts by their
length, lists and objects by all that is in them. Where the size of a result follows from what goes in, it is paid
before the work is done. So time and memory are both bounded by one count, MOST_STEPS.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime
from functools import wraps
from itertools import chain, islice
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from dist_sft.chat.price import LONG, MOST_TEXT, SLOW, heavy, is_brief, most_made, refuse_long, steps_of

MOST_STEPS = 2_000_000
"""In the rendering of one row: turns of loops, calls (which count as several), and what is made (see price.py)."""
CALL, FILTER = 20, 10
"""Turns of a loop that take as long as a call, and as a filter."""
MOST_SOURCE = 1 << 18
"""Characters of a template. The longest that people have are a tenth of it."""
MOST_BITS = 1 << 14
"""Of a whole number that a template makes."""

_NOTHING = object()
_OF_DICT = frozenset(dir(dict))
_OF_TEXT = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format", "format_map"}
"""Methods of a text that the sandbox lets pass as they are; the two others could reach into Python's objects."""
_FREE_METHODS = frozenset({"startswith", "endswith", "items", "keys", "values", "get"})
"""Methods of texts and objects that take no longer with more in them."""
_BRIEF_METHODS = frozenset({"strip", "lstrip", "rstrip", "split", "rsplit", "lower", "upper", "find", "removeprefix"})
"""Methods that make no more of a short text than it is."""
_FREE_FILTERS = frozenset({"default", "d", "length", "count", "first", "attr", "safe"})
_DICE = ("random", "lipsum")
_INNER = (Namespace, LoopContext, Macro, BlockReference, TemplateReference, Context, Cycler, Joiner)
"""What Python would write the address of, or what may hold itself."""


class _Work(threading.local):
    """What the rendering of a row has cost so far."""

    steps = 0


class _Namespace(Namespace):
    """As transformers has it: no name that begins with an underscore, so no way to Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set {name!r}")
        super().__setitem__(name, value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a count of the work, and short ways to what templates do most: `message.role` of a plain
    dict, present or not, `content.startswith("x")` of a plain text, `loop.first`, `ns.seen`. The long ways end at the
    same place, and take most of a render's time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, extensions: list[type[Extension]], filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.work = _Work()
        self.globals["namespace"] = _Namespace
        for name in _DICE:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters.update(filters)
        self.filters = {name: self._priced(name, made) for name, made in self.filters.items()}
        self.filters.update(
            {_TURNS: self.turns, _PAID: self._paid, _SEARCHED: self._searched, _JOINED: self._joined,
             _SHOWN: self._shown, _CUT: self._cut}
        )  # fmt: skip

    def from_source(self, source: str) -> jinja2.Template:
        """A compiled template.

        Raises:
            jinja2.TemplateError: it is not Jinja, or too much of it.
        """
        if len(source) > MOST_SOURCE:
            raise SecurityError(f"it has more than {MOST_SOURCE:,} characters")
        self.work.steps = 0
        try:
            return self.from_string(source)
        except jinja2.TemplateError:
            raise
        except RecursionError:
            raise SecurityError("it is nested too deeply") from None
        except Exception as error:  # noqa: BLE001  # of Jinja's parser, and of Python's, which compiles what that makes
            raise SecurityError(f"it cannot be compiled: {type(error).__name__}: {error}") from None

    def spend(self, steps: int) -> None:
        """Raises SecurityError: a row has cost too much."""
        self.work.steps += steps
        if self.work.steps > MOST_STEPS:
            raise SecurityError(f"more than {MOST_STEPS:,} turns of its loops for one row, or as much work")

    def turns(self, items: Any) -> Any:
        """What a loop goes through, paid for before it begins."""
        if not isinstance(items, Sized):
            items = list(islice(iter(items), MOST_STEPS + 1))
        self.spend(len(items))
        return items

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        priced: nodes.Template = _Priced().visit(tree)
        return priced

    def call(self, context: Context, obj: Any, *given: Any, **named: Any) -> Any:
        self.spend(CALL)
        kind = type(obj)
        if kind is Macro:
            if obj.catch_varargs or obj.catch_kwargs:
                self.spend(steps_of([given, named]))
            return super().call(context, obj, *given, **named)
        if kind is LoopContext:
            return super().call(context, obj, *(self.turns(one) for one in given), **named)
        name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        if name in _FREE_METHODS or (name in _BRIEF_METHODS and type(owner) is str and len(owner) <= LONG):
            return super().call(context, obj, *given, **named)
        self._spend_on(name, owner, given, named)
        return self._weighed(super().call(context, obj, *given, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if type(left) is str and type(right) is str:
                size = len(left) + len(right)
                if size > LONG:
                    refuse_long(size)
                    self.spend(size // LONG)
                return left + right
            self.spend(steps_of(left) + steps_of(right))
        elif operator == "%" and isinstance(left, str):
            self._spend_on("format", left, right if isinstance(right, tuple) else (right,), {})
            self._refuse_addresses((right,))
        elif operator in ("*", "**"):
            self._refuse_product(operator, left, right)
        return self._number(super().call_binop(context, operator, left, right))

    def _refuse_product(self, operator: str, left: Any, right: Any) -> None:
        if operator == "**" and isinstance(right, int | float) and abs(right) > 64:
            raise SecurityError("a power above 64")
        for items, times in ((left, right), (right, left)):
            if isinstance(items, Sized) and isinstance(times, int):
                refuse_long(len(items) * times)
                self.spend(steps_of(items) * max(0, times) + len(items) * max(0, times) // LONG)

    def _number(self, value: Any) -> Any:
        if type(value) is int and value.bit_length() > MOST_BITS:
            raise SecurityError(f"a number of more than {MOST_BITS:,} bits")
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """The text of a template, of which there may be no end."""
        kept, size = [], 0
        for piece in pieces:
            kept.append(piece)
            size += len(piece)
            if size > MOST_TEXT:
                refuse_long(size)
        if size > LONG:
            self.spend(size // LONG)
        return "".join(kept)

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in _OF_TEXT:
            return getattr(obj, attribute)
        if (kind is LoopContext or kind is _Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, _NOTHING)
            if value is not _NOTHING:
                return value
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format, which is paid for by the text that it belongs to."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def paid(*given: Any, **named: Any) -> str:
            self._spend_on("format", value.__self__, given, named)
            self._refuse_addresses((*given, *named.values()))
            return formatted(*given, **named)

        return paid

    def _priced(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays for what goes in, and what comes out."""
        if name in _FREE_FILTERS:
            return made
        before = 1 if hasattr(made, "jinja_pass_arg") else 0

        @wraps(made)
        def paid(*given: Any, **named: Any) -> Any:
            self.spend(FILTER)
            if len(given) == before + 1 and type(given[before]) is str and len(given[before]) <= LONG and not named:
                return self._weighed(made(*given))
            look = _refuse_inner if name == "join" else None
            own = [self._streamed(one, look) for one in given[before:]]
            self._spend_on(name, own[0] if own else None, own[1:], named)
            result = self._weighed(made(*given[:before], *own, **named))
            if isinstance(result, str):
                self._refuse_addresses((*own, *named.values()))
            return result

        return paid

    def _spend_on(self, name: str, owner: Any, given: Iterable[Any], named: Mapping[str, Any]) -> None:
        """Pay for a filter or a method by what it gets, and by what it will make of that."""
        if name != "format" and is_brief(owner) and all(map(is_brief, given)) and all(map(is_brief, named.values())):
            return
        steps = steps_of(owner)
        for one in chain(given, named.values()):
            steps += steps_of(one)
        if steps:
            self.spend(steps)
        size = most_made(name, owner, tuple(given), named)
        if size > LONG or name in SLOW:
            refuse_long(size)
            self.spend(size // LONG + heavy(name, owner, named))

    def _weighed(self, value: Any) -> Any:
        """A result, paid for by what is in it."""
        if type(value) is str:
            return value
        kind = type(value)
        if value is None or kind is bool or kind is Undefined or kind is _Namespace:
            return value
        if kind is not list and kind is not dict and isinstance(value, Iterator):
            return self._streamed(value)
        self.spend(steps_of(value))
        return self._number(value)

    def _refuse_addresses(self, values: Iterable[Any]) -> None:
        """Raises SecurityError: what became text holds what has none."""
        for value in values:
            if not isinstance(value, str | Iterator):
                steps_of(value, _refuse_inner)

    def _streamed(self, value: Any, look: Callable[[Any], None] | None = None) -> Any:
        """What comes out one by one, paid for when it does."""
        return self._stream(value, look) if isinstance(value, Iterator) and type(value) is not LoopContext else value

    def _stream(self, items: Iterator[Any], look: Callable[[Any], None] | None) -> Iterator[Any]:
        for item in items:
            self.spend(FILTER + steps_of(item, look))
            yield item

    def _paid(self, value: Any) -> Any:
        """A value that is compared, cut or put into another, with all that is in it."""
        if type(value) is str:
            if len(value) > LONG:
                self.spend(len(value) // LONG)
        elif value is not None and type(value) is not bool:
            self.spend(steps_of(value))
        return value

    def _cut(self, value: Any) -> Any:
        """A value of which a part is copied."""
        if isinstance(value, Sized) and len(value) > LONG:
            self.spend(len(value) // (LONG if isinstance(value, str) else 1))
        return value

    def _searched(self, value: Any) -> Any:
        """A value in which one is looked for."""
        return value if isinstance(value, dict) else self._paid(value)

    def _joined(self, *values: Any) -> str:
        """What `~` writes."""
        texts = [value if type(value) is str else str(self._shown(value)) for value in values]
        size = sum(map(len, texts))
        if size > LONG:
            refuse_long(size)
            self.spend(size // LONG)
        return "".join(texts)

    def _shown(self, value: Any) -> Any:
        """A value that will be text. One whose text is an address in memory is another in each process."""
        if type(value) is str or value is None or isinstance(value, bool | int | float | Undefined):
            return value
        if isinstance(value, str | bytes | datetime):
            return value
        self.spend(steps_of(value, _refuse_inner))
        return value


def _refuse_inner(value: Any) -> None:
    if isinstance(value, Undefined):
        return
    own = type(value).__repr__ is object.__repr__ and type(value).__str__ is object.__str__
    if own or callable(value) or isinstance(value, (*_INNER, Iterator)):
        raise SecurityError(f"it writes a {type(value).__name__} as if it were text")


_TURNS, _PAID, _SEARCHED, _JOINED, _SHOWN, _CUT = "#turns", "#paid", "#searched", "#joined", "#shown", "#cut"
"""Filters that no template can name."""
_WRITTEN = (nodes.TemplateData, nodes.Const, nodes.Concat)


class _Priced(NodeTransformer):
    """Puts what may cost more than its length into the hands of these filters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(_TURNS, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_JOINED, *node.nodes)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            one if isinstance(one, _WRITTEN) or (isinstance(one, nodes.Filter) and one.name == _JOINED)
            else _filter(_SHOWN, one) for one in node.nodes
        ]  # fmt: skip
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        for left, operand in zip(sides, node.ops, strict=False):
            if operand.op in ("in", "notin"):
                operand.expr = operand.expr if _is_const(operand.expr) else _filter(_SEARCHED, operand.expr)
            elif not (_is_const(left) or _is_const(operand.expr)):
                operand.expr = _filter(_PAID, operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if (node.args and not all(map(_is_const, node.args))) or node.name in ("lower", "upper", "in"):
            node.node, node.args = _filter(_PAID, node.node), [_filter(_PAID, one) for one in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(_CUT, node.node)
        return node

    def _collection(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"
        return node if stored or _is_const(node) else _filter(_PAID, node)

    visit_List = visit_Tuple = visit_Dict = _collection


def _filter(name: str, value: Any, *more: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(more), [], None, None, lineno=value.lineno)


def _is_const(node: nodes.Node) -> bool:
    """Whether a template spells a value out."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(map(_is_const, node.items))
    if isinstance(node, nodes.Dict):
        return all(_is_const(pair.key) and _is_const(pair.value) for pair in node.items)
    return isinstance(node, nodes.Const | nodes.Neg) and (not isinstance(node, nodes.Neg) or _is_const(node.node))
