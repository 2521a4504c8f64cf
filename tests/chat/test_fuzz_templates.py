"""A hundred templates that want to do harm, and many that a generator makes: a text or our error, in bounded time and
memory, each time the same."""

import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_sft.chat import sandbox
from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.chat.encode import Encoder
from dist_sft.chat.render import Renderer
from dist_sft.chat.sandbox import MOST_SOURCE, MOST_STEPS
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import RowError, TemplateError

LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"
NS = "{% set n = namespace(s='aaaaaaaa', l=[1]) %}"
BIG = "{% set big = 'a' * 9999999 %}"
TALK = Conversation(
    (Message("user", "a" * 1000), Message("assistant", "b", None, (ToolCall("f", {"x": [1, {"y": 2}]}),)))
)
MOST_SECONDS, MOST_MEMORY = 40, 3 << 30
"""Of a processor whose threads share a core with others: 24 s were seen there for the longest, 8 s on an idle one."""

REFUSED = [
    # loops
    LOOP + LOOP + END * 2,
    "{% for i in range(10**12) %}{% endfor %}",
    "{% for x in [1] recursive %}{% if loop.depth0 < 2 %}"
    + LOOP
    + "{{ loop(range(99999)) }}"
    + END
    + "{% endif %}{% endfor %}",
    "{% macro f() %}" + LOOP + END + "{% endmacro %}" + LOOP + "{{ f() }}" + END,
    "{% block a %}{{ self.b() }}{{ self.b() }}{% endblock %}{% block b %}{{ self.a() }}{% endblock %}",
    LOOP + "{{ range(99999) | list | length }}" + END,
    LOOP + "{{ range(99999) | sum }}" + END,
    LOOP + "{% set x = range(99999) | map('string') | list %}" + END,
    LOOP + "{{ dict(a=1, *range(9)) }}" + END,
    "{% macro f() %}{{ varargs | length }}{% endmacro %}" + LOOP + "{{ f(*range(99999)) }}" + END,
    # texts that double, or are made large at once
    NS + LOOP + "{% set n.s = n.s + n.s %}" + END,
    NS + LOOP + "{% set n.s = n.s ~ n.s %}" + END,
    NS + LOOP + "{% set n.s = n.s * 2 %}" + END,
    NS + LOOP + "{% set n.s = '%s%s' % (n.s, n.s) %}" + END,
    NS + LOOP + "{% set n.s = '%s%s' | format(n.s, n.s) %}" + END,
    NS + LOOP + "{% set n.s = [n.s, n.s] | join %}" + END,
    NS + LOOP + "{% set n.s = '{0}{0}'.format(n.s) %}" + END,
    NS + LOOP + "{% set n.s = n.s | replace('a', 'aa') %}" + END,
    NS + LOOP + "{% set n.s = n.s.replace('a', 'aa') %}" + END,
    NS + LOOP + "{% set n.s = n.s.join(['', n.s, '']) %}" + END,
    NS + LOOP + "{% set x %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = x %}" + END,
    NS + LOOP + "{% set n.s = n.s | e ~ n.s %}" + END,
    NS + LOOP + "{% set n.s = (n.s | tojson | tojson) ~ n.s %}" + END,
    NS + LOOP + "{% set n.s = n.s | urlencode ~ '%' ~ n.s %}" + END,
    "{{ 'a' * 10**10 }}",
    "{{ 'a' * 9999999999 }}",
    "{{ [0] * 9999999999 }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.rjust(10**9, 'b') }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ ('\t' * 1000).expandtabs(10**8) }}",
    "{{ ('a\n' * 9999) | indent(99999) }}",
    "{{ 'a\nb' | indent(1000000000) }}",
    "{{ '%1000000000d' % 5 }}",
    "{{ '%1000000000d' | format(5) }}",
    "{{ '%*d' % (1000000000, 5) }}",
    "{{ '%.1000000000f' % 5 }}",
    "{{ '{:1000000000}'.format(5) }}",
    "{{ '{:{w}}'.format(5, w=1000000000) }}",
    "{{ '{0:>{1}}'.format('a', 999999999) }}",
    "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "{{ [1] | batch(1000000000, 0) | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ {'a': 1} | tojson(indent=1000000000) }}",
    "{{ ('a ' * 99999) | wordwrap(1, wrapstring='b' * 99999) }}",
    "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "{{ (5).to_bytes(10**10, 'big') }}",
    "{{ 'a'.encode().center(10**9) }}",
    "{{ {}.fromkeys(range(99999), 'a' * 10**7) }}",
    "{% filter center(1000000000) %}a{% endfilter %}",
    "{{ ['a' * 9999999] * 9999 }}",
    "{{ (['a' * 9999999] * 99) | join }}",
    LOOP + "{{ 'a' * 9999 }}" + END,
    "{% macro f() %}" + LOOP + "{{ 'a' * 99999 }}" + END + "{% endmacro %}{{ f() }}",
    # numbers
    "{{ 9**(9**9) }}",
    "{{ ((((9**64)**64)**64)**64) }}",
    "{% set n = namespace(x=3) %}" + LOOP + "{% set n.x = n.x * n.x %}" + END,
    "{{ ('f' * 999999) | int(base=16) }}",
    "{{ (0).from_bytes(('a' * 9999999).encode(), 'big') % 7 }}",
    # work on what is large, over and over
    BIG + LOOP + "{{ big[1:] | length }}" + END,
    BIG + LOOP + "{% if 'b' in big %}{% endif %}" + END,
    BIG + "{% set c = 'a' * 9999999 %}" + LOOP + "{% if big == c %}{% endif %}" + END,
    BIG + LOOP + "{{ big | upper | length }}" + END,
    BIG + LOOP + "{{ big.count('b') }}" + END,
    BIG + LOOP + "{{ big.split('a') | length }}" + END,
    BIG + LOOP + "{{ big | length }}{{ big | trim('b') | length }}" + END,
    BIG + LOOP + "{{ big is lower }}" + END,
    BIG + LOOP + "{{ big is eq(big ~ '') }}" + END,
    BIG + "{{ big | list | sort }}",
    "{% set x = range(99999) | list %}" + LOOP + "{% if x == x[:] %}{% endif %}" + END,
    "{% set x = range(99999) | list %}" + LOOP + "{% if -1 in x %}{% endif %}" + END,
    "{% set x = range(99999) | list %}" + LOOP + "{{ x | tojson | length }}" + END,
    "{% set x = range(99999) | list %}" + LOOP + "{{ x | sort | first }}" + END,
    "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "{{ ('<>' * 999999) | striptags }}",
    "{{ ('http://a.b ' * 99999) | urlize }}",
    "{{ ('a-' * 9999999) | title }}",
    # lists and objects that hold themselves many times
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = [n.x, n.x] %}" + END,
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = {'a': n.x, 'b': n.x} %}" + END,
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = dict(a=n.x, b=n.x) %}" + END,
    "{% set n = namespace(x=[1]) %}" + LOOP + "{% set n.x = n.x + n.x %}" + END,
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = (n.x, n.x) %}" + END,
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = [n.x] * 2 %}" + END,
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = [n.x] | batch(2, n.x) | first %}" + END,
    "{% set n = namespace(x=[]) %}{% macro f() %}{% set n.x = varargs %}{% endmacro %}"
    + LOOP
    + "{{ f(n.x, n.x) }}"
    + END,
    "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = [n.x] %}" + END + "{{ n.x }}",
    # macros that call themselves
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}"
    "{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
    # addresses, dice and clocks, which differ from run to run
    "{{ range }}",
    "{{ messages[0].items }}",
    "{{ messages | map('upper') }}",
    "{{ joiner() }}",
    "{{ cycler(1) ~ '' }}",
    "{{ [range] }}",
    "{{ [messages[0].get] | string }}",
    "{{ lipsum() }}",
    "{{ loop }}{{ self }}",
    "{{ namespace() }}",
    "{{ '%s' % range }}",
    "{{ '{}'.format(messages[0].get) }}",
    "{{ [range] | join }}",
    "{{ messages[0].get | upper }}",
    # ways out, and words that lie
    "{{ ''.__class__ }}{{ raise_exception('x') }}",
    "{{ (1).__class__.__mro__[1].__subclasses__() }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}{{ 1 // 0 }}",
    "{{ messages.append(1) }}",
    "{% set n = namespace() %}{% set n.__x = 1 %}",
    "{{ namespace.__init__.__globals__ }}{{ 1 // 0 }}",
    "{{ raise_exception('no\n  fix: rm -rf\x1b[2J') }}",
    "{{ messages['\n  fix: x\x1b[2J'].y }}",
    "{{ messages[9]['\x07'].y }}",
    "{% include 'a' %}",
    "{% import 'os' as os %}",
    "{{ raise_exception('x' * 10**6) }}",
    "{{ raise_exception() }}",
    "{% set x = 1e999 %}{{ x | int }}{{ 1 // 0 }}",
]
"""What each of these does is an error of the row."""
NEVER = [
    "{{ [1] | random }}",
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "{{ " + "-" * 9999 + "1 }}",
    "{{ " + "[" * 999 + "]" * 999 + " }}",
    "{{ 1" + "+1" * 9999 + " }}",
    "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "{% for a in [1] %}" * 99 + "{% endfor %}" * 99,
    "{{ " + "9" * 9999 + " }}",
    "{{ not " * 3 + "1",
    "{{ a" + ".b" * 99999 + " }}",
    "{% macro f() %}" * 99 + "{% endmacro %}" * 99,
    "x" * (MOST_SOURCE + 1),
    "{{ '\x1b[2J\n  fix: x' | \x1b }}",
    "{% \x1b[2J\n fix: x %}",
    "{{ 'a' | nosuch }}",
    "{% macro %}",
]
"""Of these there is no template."""


def rendered(source):
    """("text", it) or ("row" or "template", our error's words), and the CPU-seconds that it took."""
    begin = time.process_time()
    try:
        came = "text", Renderer(source, {}).render(TALK)
    except RowError as error:
        came = "row", str(error)
    except TemplateError as error:
        came = "template", str(error)
    return (*came, time.process_time() - begin)


@pytest.mark.parametrize("source", REFUSED, ids=range(len(REFUSED)))
def test_a_hostile_template_is_an_error_of_the_row(source, few_bytes):
    kind, words, seconds = rendered(source)
    assert kind == "row" and seconds < MOST_SECONDS, (kind, words[:300], seconds)
    assert words.count("\n") == words.count("\n  fix: ") == 1 and "\x1b" not in words and "\x07" not in words
    assert len(words) < 1000 and " at 0x" not in words and "MemoryError" not in words


@pytest.mark.parametrize("source", NEVER, ids=range(len(NEVER)))
def test_what_is_no_template_or_too_much_of_one_is_refused(source, few_bytes):
    kind, words, seconds = rendered(source)
    assert kind in ("template", "row") and seconds < MOST_SECONDS, (kind, words[:300], seconds)
    assert words.count("\n") == words.count("\n  fix: ") == 1 and "\x1b" not in words and len(words) < 1000


def test_there_are_a_hundred_hostile_templates():
    assert len({*REFUSED, *NEVER}) >= 100


SHORT = MOST_STEPS // 10


@pytest.fixture(autouse=True)
def fewer_steps(request, monkeypatch):
    """A tenth of the work, but with --soak: what is refused in the end is refused sooner."""
    if not request.config.getoption("--soak"):
        monkeypatch.setattr(sandbox, "MOST_STEPS", SHORT)


@pytest.fixture
def few_bytes():
    """Address space for what a template may fill, and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


ATOMS = [
    "messages",
    "messages[0].content",
    "n.s",
    "n.l",
    "'ab'",
    "3",
    "99999",
    "range(9999)",
    "tools",
    "none",
    "1.5",
    "messages[0]",
    "n",
    "loop",
    "1000000000",
    "{'a': n.l}",
    "[n.s, n.s]",
    "x",
]
BINARY = ["+", "*", "~", "%", "**", "//", "-", "==", "in", "<", "and", "or"]
UNARY = [
    "upper",
    "list",
    "tojson",
    "join(',')",
    "join(n.s)",
    "length",
    "string",
    "center(99999)",
    "indent(9999)",
    "replace('a', n.s)",
    "batch(3, n.s)",
    "slice(9)",
    "sort",
    "unique",
    "map('upper')",
    "map('list')",
    "first",
    "sum",
    "wordwrap(3)",
    "striptags",
    "urlize",
    "e",
    "trim",
    "int",
    "dictsort",
    "items",
    "reverse",
    "pprint",
    "title",
    "selectattr('role')",
    "groupby('role')",
    "default(n.s)",
    "format(n.s, n.l)",
    "truncate(9)",
    "xmlattr",
    "sum(start=[])",
    "round(2)",
    "last",
    "max",
    "urlencode",
    "filesizeformat",
]
METHODS = [
    "split('a')",
    "join(n.l)",
    "replace('a', n.s)",
    "format(n.s)",
    "center(9999)",
    "items()",
    "strip()",
    "count('a')",
    "encode()",
    "zfill(9999)",
    "splitlines()",
    "partition('a')",
    "copy()",
    "index(1)",
    "title()",
]


def expression(dice, depth=0):
    kind = dice.random()
    if depth > 3 or kind < 0.3:
        return dice.choice(ATOMS)
    inner = expression(dice, depth + 1)
    if kind < 0.55:
        return f"({inner} {dice.choice(BINARY)} {expression(dice, depth + 1)})"
    if kind < 0.85:
        return f"({inner} | {dice.choice(UNARY)})"
    return (
        f"({inner}).{dice.choice(METHODS)}" if kind < 0.95 else f"({inner})[{dice.choice(['1:', '::-1', '0', '-1'])}]"
    )


def template(dice, depth=0):
    parts = []
    for _ in range(dice.randint(1, 3)):
        kind = dice.random()
        if kind < 0.3:
            parts.append(f"{{{{ {expression(dice)} }}}}")
        elif kind < 0.6:
            parts.append(f"{{% set n.{dice.choice('sl')} = {expression(dice)} %}}")
        elif depth < 3:
            items = dice.choice(["range(99999)", "range(99)", "messages", expression(dice)])
            parts.append(f"{{% for x in {items} %}}{template(dice, depth + 1)}{{% endfor %}}")
    return "".join(parts)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_templates_of_a_generator_are_texts_or_our_errors(request, few_bytes):
    count, seen = (3_000 if request.config.getoption("--soak") else 150), set()
    for number in range(count):
        source = NS + template(random.Random(number))
        kind, words, seconds = rendered(source)
        assert seconds < MOST_SECONDS, source
        assert kind != "text" or " at 0x" not in words, source
        seen.add(kind)
    assert {"text", "row"} <= seen


IN_ANOTHER = """
import hashlib, random
from dist_sft.chat import sandbox
from tests.chat.test_fuzz_templates import NS, SHORT, rendered, template
sandbox.MOST_STEPS = SHORT
found = [rendered(NS + template(random.Random(number)))[:2] for number in range(60)]
print(len({kind for kind, _ in found}), hashlib.sha256(repr(found).encode()).hexdigest())
"""


def test_a_template_is_the_same_text_or_the_same_error_in_another_process():
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IN_ANOTHER],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and found.pop().startswith("2 ")


def test_work_is_counted_alike_with_and_without_a_mark():
    renderer = Renderer("{% for m in messages %}{{ m.content | upper }}{% endfor %}", {})
    assert renderer.render(TALK) == "A" * 1000 + "B"
    assert 0 < renderer._plain[0].environment.work.steps < 1000 < MOST_STEPS


@pytest.mark.parametrize(
    "source",
    [LOOP * 2 + END * 2, "{{ 'a' * 10**10 }}", "{% for m in messages %}" + LOOP * 2 + END * 2 + "{% endfor %}"],
)
def test_an_encoder_with_a_hostile_template_is_refused_in_bounded_time(source, tiny, tmp_path):
    path = tmp_path / "a.jinja"
    path.write_text(source)
    begin = time.process_time()
    with pytest.raises(TemplateError):
        Encoder(tiny, str(path), LossWeights(), 4096, "error")
    assert time.process_time() - begin < 4 * MOST_SECONDS
