"""A run file may come from anywhere: whatever it holds, it is read, or refused shortly and soon."""

import random
import time
from pathlib import Path

import pytest

from dist_sft.config.deepspeed_file import read_deepspeed
from dist_sft.config.document import MOST_BYTES, MOST_DEPTH, MOST_VALUES, parse_yaml
from dist_sft.config.load import load_config
from dist_sft.core.errors import ConfigError

HEAD = "model: {path: m}\ndata: {sources: [a.jsonl]}\n"
TRAIN = HEAD + "train: {steps: 1}\n"
SECONDS, LINES = 20.0, 20  # CPU-seconds: a loop over aliases or a look for every name takes minutes
"""CPU-seconds, and lines of a message."""


def laughs(levels, each, form):
    """An alias of aliases of aliases."""
    texts = [f"a0: &a0 {form.format('x: 1')}"]
    texts += [f"a{i}: &a{i} {form.format(', '.join([f'*a{i - 1}'] * each))}" for i in range(1, levels)]
    return "\n".join(texts) + "\n"


def merges(levels, each):
    texts = ["a0: &a0 {x: 1}"]
    texts += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * each)}], y{i}: 1}}" for i in range(1, levels)]
    return "\n".join(texts) + "\n"


def nested(levels, opening, closing):
    return HEAD + "train: " + opening * levels + closing * levels + "\n"


def scalar(text):
    return HEAD + f"train: {{steps: {text}}}\n"


HOSTILE = {
    **{
        f"scalar {text[:20]}": scalar(text)
        for text in (
            ".INF",
            ".Inf",
            "-.INF",
            ".NaN",
            ".nan",
            "+.inf",
            "0x_",
            "0x",
            "0x" + "f" * 5000,
            "9" * 4301,
            "9" * 100_000,
            "-" + "9" * 4301,
            "1" + "_" * 5000,
            "1e999",
            "1e-999",
            "1e99999999999",
            "9" * 400 + ".5",
            "1.5e" + "9" * 5000,
            "\u0663",
            "1__0e_5",
            "~",
            "''",
            "!!python/object/apply:os.system ['true']",
            "!!binary aGk=",
            "!foo 3",
            "!!int '3'",
            "!!set {a, b}",
            "! 3",
            "!<x> 3",
            '"\\ud800"',
            '"\\UFFFFFFFF"',
            '"\\U00110000"',
            '"\\x1b[2J"',
            '"\\q"',
            "*nowhere",
            "&a *a",
            "<<",
            "{<<: 5}",
            "{<<: [5]}",
            "{<<: {<<: {<<: 3}}}",
            "{<<: null}",
            "{[1]: 2}",
            "{{a: b}: 2}",
            "{? 1 : 2, ? 1 : 3}",
            "[",
            "]",
            "{",
            "}",
            "'",
            '"',
            "|",
            ">",
            "%",
            "@",
            "`",
            "- - -",
            "? ?",
            ": :",
            "--- ---",
            "...",
            "#",
            "2001-01-01",
            "12:30:45",
            "yes",
            "NO",
            "x" * 200_000,
            "'" + "y" * 200_000 + "'",
        )
    },
    **{
        f"control U+{code:02x}": TRAIN + f"run: {{name: a{chr(code)}b}}\n"
        for code in (0, 1, 7, 8, 11, 12, 27, 127, 0x85, 0x9B, 0x2028, 0xFEFF, 0xFFFF)
    },
    "lists": nested(500, "[", "]"),
    "sections": nested(500, "{a: ", "}"),
    "never closed": nested(50_000, "[", ""),
    "sections never closed": nested(40_000, "{a: ", ""),
    "as deep as may be": nested(MOST_DEPTH - 3, "[", "]"),
    "indented": HEAD + "".join(" " * i + "a:\n" for i in range(1, 400)),
    "dashes": HEAD + "train:\n" + "- " * 5000 + "x\n",
    "questions": HEAD + "train:\n" + "? " * 5000 + "x\n",
    "laughs of lists": laughs(10, 9, "[{}]").replace("x: 1", "1") + TRAIN,
    "of sections": laughs(10, 9, "[{{{}}}]") + TRAIN,
    "merged": merges(10, 9) + TRAIN,
    "merged many": merges(100, 2) + TRAIN,
    "itself": HEAD + "train: &a\n  <<: *a\n",
    "itself in a list": HEAD + "train: &a [*a]\n",
    "merged chain": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: *a{i - 1}}}\n" for i in range(1, 300)) + TRAIN,
    "unknown keys": HEAD + "train:\n" + "".join(f"  key{i}: 1\n" for i in range(20_000)),
    "fewer unknown keys": HEAD + "train:\n" + "".join(f"  learning_rat{i}: 1\n" for i in range(9_000)),
    "unknown sections": HEAD + "".join(f"trian{i}: {{steps: 1}}\n" for i in range(4_000)),
    "wrong sources": "model: {path: m}\ntrain: {steps: 1}\ndata:\n  sources:\n"
    + "".join("    - {weight: x}\n" for _ in range(6_000)),
    "long keys": TRAIN + "".join(f"{chr(97 + i) * 12_000}: 1\n" for i in range(20)),
    "a key of escapes": TRAIN + '"\\e[31m\\nfix: rm -rf /": 1\n',
    "a value of escapes": scalar('"\\e[2J\\n  fix: curl evil"'),
    "anchors": HEAD + "".join(f"a{i}: &b{i} 1\n" for i in range(9_000)),
    "comments": "# x\n" * 60_000 + TRAIN,
    "blank lines": "\n" * 250_000 + TRAIN,
    "tabs": HEAD + "train:\n\tsteps: 1\n",
    "two documents": TRAIN + "---\n" + TRAIN,
    "a directive": "%YAML 9.9\n---\n" + TRAIN,
    "a directive twice": "%YAML 1.1\n%YAML 1.1\n---\n" + TRAIN,
    "a tag directive": "%TAG ! tag:x,2000:\n---\n" + TRAIN,
    "long": TRAIN + "# " + "x" * MOST_BYTES,
    "commas": HEAD + "train: [" + "," * 50_000 + "]\n",
    "colons": HEAD + "train: " + "a:" * 50_000 + "\n",
    "quotes": HEAD + "train: " + "''" * 50_000 + "\n",
    "one long flow": HEAD + "train: [" + "1, " * 19_000 + "]\n",
    "NUL first": "\0" + TRAIN,
    "a text": "hello",
    "a number": "5",
    "null": "null",
    "empty": "",
}
BYTES = {
    "not UTF-8": b"\xff\xfe\x00",
    "UTF-16": TRAIN.encode("utf-16"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
    "zeros": bytes(1 << 20),
    "half a character": TRAIN.encode() + b"# \xc3",
}


def outcome(read, path: Path) -> str:
    """The message, or "" where it is read. Fails where it takes long or says much."""
    begun = time.process_time()
    try:
        read(path)
        message = ""
    except ConfigError as error:
        message = str(error)
    assert time.process_time() - begun < SECONDS
    assert len(message.splitlines()) <= LINES
    assert len(message) < 8_000
    assert all(letter.isprintable() or letter == "\n" for letter in message), message
    assert "\nfix:" not in message
    return message


@pytest.mark.parametrize("name", [*HOSTILE, *BYTES])
def test_a_hostile_run_file_is_read_or_refused(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_bytes(BYTES[name] if name in BYTES else HOSTILE[name].encode("utf-8", "surrogatepass"))
    outcome(load_config, path)


REFUSED = {
    ".INF": "train.steps is Infinity, not a whole number",
    "0x_": "train.steps is '0x_', not a whole number",
    "9" * 4301: "a whole number beyond 64 bits",
    "{<<: 5}": "run.yaml:3: << merges a section, and this is none",
    "!!int '3'": "run.yaml:3: the tag tag:yaml.org,2002:int has no meaning here",
    '"\\ud800"': "run.yaml:3: a text with half a character",
}


@pytest.mark.parametrize("text", REFUSED)
def test_the_message_says_what_and_where(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(scalar(text))
    assert REFUSED[text] in outcome(load_config, Path("run.yaml"))


def test_of_many_problems_the_first_are_told_and_all_are_counted(tmp_path):
    (tmp_path / "run.yaml").write_text(HOSTILE["fewer unknown keys"])
    message = outcome(load_config, tmp_path / "run.yaml")
    assert message.startswith("9,000 problems in the run file\n") or "9,001 problems" in message
    assert "learning_rat0 is not a setting\n  fix: did you mean 'learning_rate'?" in message
    assert message.splitlines()[-1].startswith("and 8,99")


def test_a_large_run_file_is_read(tmp_path):
    """A thousand sources, most of them by an alias."""
    lines = [f"    - {{path: data/part-{i:05}.jsonl, weight: 2, <<: *shape}}" for i in range(1000)]
    (tmp_path / "run.yaml").write_text(
        "model: {path: m}\ntrain: {steps: 1}\ndata:\n  sources:\n"
        "    - &shape {path: first.jsonl, format: alpaca, weight: 1}\n" + "\n".join(lines) + "\n"
    )
    sources = load_config(tmp_path / "run.yaml").data.sources
    assert len(sources) == 1001 and sources[1000].path == "data/part-00999.jsonl" and sources[1000].format == "alpaca"


def test_of_merged_sections_the_first_wins_and_own_keys_before_all():
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  z: 3\n  <<: [*a, *b]\n  w: 3\n"
    assert parse_yaml(text, "f").value["c"] == {"x": 1, "y": 1, "z": 3, "w": 3}
    assert parse_yaml('{"<<": 1}', "f").value == {"<<": 1}


def test_values_are_counted_as_they_are_written_out():
    parse_yaml("[" + "1, " * (MOST_VALUES - 1) + "]", "f")
    with pytest.raises(ConfigError, match="more than 10,000 values"):
        parse_yaml("[" + "1, " * MOST_VALUES + "]", "f")


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=" + "9" * 5000,
        "data.sources." + "9" * 5000 + ".path=x",
        "data.sources.\u0663.path=x",
        "a" * 100_000 + "=1",
        "train=" + "[" * 10_000,
        "train.steps=\x00",
        "train.steps=.NaN",
        "train.steps=!!x 1",
        "." * 5000 + "=1",
        "=",
        "train.steps=\x1b[2J",
        ".".join(["a"] * 5000) + "=1",
    ],
    ids=lambda text: text[:20],
)
def test_a_hostile_override_is_refused(tmp_path, override):
    (tmp_path / "run.yaml").write_text(TRAIN)
    assert outcome(lambda path: load_config(path, [override]), tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": "\\ud800"}',
        '{"a": 1e999}',
        "{" + '"a": 1,' * 20_000 + '"b": 1}',
        "\x00",
        '{"\x1b": 1}',
        '{"a": ' + "[" * 70 + "]" * 70 + "}",
    ],
    ids=lambda text: text[:20],
)
def test_a_hostile_deepspeed_file_is_read_or_refused(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    outcome(read_deepspeed, tmp_path / "ds.json")


def test_random_damage_of_a_run_file_is_read_or_refused(tmp_path):
    dice = random.Random(5)
    whole = (TRAIN + "eval: &e {every: 5}\nrun: {name: 'x', <<: *e}\n").encode()
    pieces = [
        b"&a ",
        b"*a ",
        b"<<: ",
        b"!!x ",
        b"[",
        b"{",
        b"- ",
        b"\t",
        b"\x00",
        b"\xff",
        b"'",
        b'"',
        b"\n",
        b"? ",
        b"%",
        b"|\n",
        b"\\ud800",
    ]
    for number in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(damaged))
            damaged[at : at + dice.choice((0, 0, 1, 9))] = dice.choice(pieces)
        (tmp_path / f"{number}.yaml").write_bytes(damaged)
        outcome(load_config, tmp_path / f"{number}.yaml")
