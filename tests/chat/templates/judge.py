"""What dist_sft makes of a row under a template, against what the oracle says."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

from tokenizers import Tokenizer

from dist_sft.chat.conversation import Conversation, Document
from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.chat.templates import ChatTemplate
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.chat.witness import Witness
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import SftError
from tests.chat.templates.conversations import KINDS, rows
from tests.chat.templates.listing import Entry
from tests.chat.templates.oracle import ASK, Expected, Learned, Refused, Template

Verdict = Literal["right", "justified", "unjustified", "objection", "wrong"]


@dataclass(frozen=True)
class Cell:
    """One kind of conversation under one template.

    verdict  right; justified: refused, and the template cannot hold it; unjustified: refused all the same;
             objection: right, but the second way objects; wrong: something else is learned, or it fails
    why      in words, where it is not right
    """

    template: str
    kind: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Made:
    """What the encoder made. texts: what is learned, as in Learned; controls: the special tokens in it, in order;
    first: the first token, which nobody can learn, for nothing comes before it."""

    whole: str
    texts: tuple[str, ...]
    controls: tuple[str, ...]
    objection: str | None
    first: str = ""


class Bench:
    """One template with its tokenizer, set up as a run does it."""

    def __init__(self, source: str, vocabulary: Vocabulary) -> None:
        self._template, self._vocabulary = ChatTemplate("auto", source), vocabulary
        self._special = {token.id: token.content for token in vocabulary.added_tokens if token.special}

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._vocabulary, self._template, LossWeights(), 1 << 20, "error")

    @cached_property
    def _witness(self) -> Witness:
        return Witness(self._vocabulary, self._template, LossWeights())

    def made(self, row: dict[str, Any]) -> Made:
        """Raises SftError where the row, or the template, is refused."""
        item = parse_row(row)
        pieces = self._encoder.preview(item)
        shown = [(piece.weight > 0, self._special.get(piece.id, piece.text)) for piece in pieces]
        runs = groupby(shown, lambda one: one[0])
        texts = tuple("".join(text for _, text in run) for learned, run in runs if learned)
        controls = tuple(self._special[piece.id] for piece in pieces if piece.id in self._special)
        return Made("".join(piece.text for piece in pieces), texts, controls, self._objection(item), shown[0][1])

    def _objection(self, item: Conversation | Document) -> str | None:
        sample = self._encoder.encode(item)
        try:
            objection = self._witness.examine(item, sample).objection
        except SftError as error:
            return str(error)
        return objection and f"{objection.what}: {objection.learned!r}, not {objection.expected!r}"

    def controls_of(self, whole: str) -> tuple[str, ...]:
        """The special tokens of a text in which nobody has typed one."""
        ids = self._tokenizer.encode(whole, add_special_tokens=False).ids
        return tuple(self._special[id_] for id_ in ids if id_ in self._special)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self._vocabulary.backend)


def judged(entry: Entry, whole: bool = False) -> list[Cell]:
    """Every kind under one template."""
    template, bench = entry.template(), Bench(entry.source, entry.vocabulary(whole))
    asked = rows(_opening(template), (*entry.stops, entry.eos, "<s>")[0])
    honest = rows("zulu", "yankee")
    cells = []
    for kind in KINDS:
        expected = template.expected(asked[kind])
        plain = expected if asked[kind] == honest[kind] else template.expected(honest[kind])
        cells.append(Cell(entry.name, kind, *_verdict(bench, asked[kind], expected, plain)))
    return cells


def _opening(template: Template) -> str:
    """What a user would type to open an answer in the assistant's name."""
    try:
        prompt = template.render(ASK, prompt=True).rpartition("zq")[2]
    except Refused:
        prompt = ""
    return "".join(template.stops[:1]) + prompt


def _verdict(bench: Bench, row: dict[str, Any], expected: Expected, plain: Expected) -> tuple[Verdict, str]:
    """plain: what the same row teaches if nobody types control tokens in it."""
    try:
        made = bench.made(row)
    except SftError as error:
        said = f"{getattr(error, 'reason', type(error).__name__)}: {error.what}"
        return ("unjustified", said) if expected.refusal is None else ("justified", f"{expected.refusal} [{said}]")
    except Exception as error:  # noqa: BLE001 (whatever it is, it is no error of the row)
        return "wrong", f"{type(error).__name__}: {error}"
    fault = fault_of(made, expected) or forgery_in(made, plain, bench)
    if fault:
        return "wrong", fault + ("" if made.objection else " (and nobody objects)")
    return ("objection", made.objection) if made.objection else ("right", "")


def fault_of(made: Made, expected: Expected) -> str | None:
    """How what was made differs from all that is right."""
    if not expected.right:
        return f"learned {list(made.texts)}, but {expected.refusal}"
    if any(made.texts == _learnable(right, made) and _is_whole(made.whole, right) for right in expected.right):
        return None
    right = expected.right[0]
    if made.texts != (texts := _learnable(right, made)):
        return f"learned {list(made.texts)}, not {list(texts)}"
    return f"the text is {made.whole[-200:]!r}, not {right.whole[-200:]!r}"


def _learnable(right: Learned, made: Made) -> tuple[str, ...]:
    """Its texts, without the first token of the whole."""
    first, *others = right.texts
    return (first.removeprefix(made.first) if right.whole.startswith(first) else first, *others)


def _is_whole(text: str, right: Learned) -> bool:
    """What a template writes behind the last answer, such as the next generation prompt, may be left out."""
    return right.whole.startswith(text) and len(text) >= right.end


def forgery_in(made: Made, plain: Expected, bench: Bench) -> str | None:
    """Control tokens come from the template only: those of the same row in which nobody types any."""
    allowed = [bench.controls_of(right.whole) for right in plain.right]
    if any(made.controls == controls[: len(made.controls)] for controls in allowed):
        return None
    return f"its control tokens are {made.controls}, not {allowed[0]}"
