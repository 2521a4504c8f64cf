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
from dist_sft.config.sections import LossWeights
from dist_sft.core.errors import SftError
from tests.chat.templates.conversations import KINDS, rows
from tests.chat.templates.listing import Entry
from tests.chat.templates.oracle import Expected, Learned, Refused, Template

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
    """What the encoder made. texts: what is learned, as in Learned; controls: the special tokens in it, in order."""

    whole: str
    texts: tuple[str, ...]
    controls: tuple[str, ...]
    objection: str | None


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
        shown = [(self._special.get(piece.id, piece.text), piece.weight > 0) for piece in pieces]
        texts = tuple("".join(text for text, _ in run) for learned, run in groupby(shown, lambda one: one[1]) if learned)
        controls = tuple(self._special[piece.id] for piece in pieces if piece.id in self._special)
        return Made("".join(piece.text for piece in pieces), texts, controls, self._objection(item))

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
    forged = rows(_opening(template), (*entry.stops, entry.eos, "<s>")[0])
    honest = rows("zulu", "yankee")
    return [_cell(entry.name, kind, template, bench, forged[kind], honest[kind]) for kind in KINDS]


def _cell(name: str, kind: str, template: Template, bench: Bench, row: dict[str, Any], honest: dict[str, Any]) -> Cell:
    expected = template.expected(row)
    try:
        made = bench.made(row)
    except SftError as error:
        said = f"{getattr(error, 'reason', type(error).__name__)}: {error.what}"
        if expected.refusal is not None:
            return Cell(name, kind, "justified", f"{expected.refusal} [{said}]")
        return Cell(name, kind, "unjustified", said)
    except Exception as error:
        return Cell(name, kind, "wrong", f"{type(error).__name__}: {error}")
    fault = _fault(made, expected) or _forgery(made, bench, template, honest)
    if fault:
        return Cell(name, kind, "wrong", fault + ("" if made.objection else " (and nobody objects)"))
    return Cell(name, kind, "objection", made.objection) if made.objection else Cell(name, kind, "right")


def _fault(made: Made, expected: Expected) -> str | None:
    """How what was made differs from all that is right."""
    if not expected.right:
        return f"learned {list(made.texts)}, but {expected.refusal}"
    if any(made.texts == right.texts and _is(made.whole, right) for right in expected.right):
        return None
    right = expected.right[0]
    if made.texts != right.texts:
        return f"learned {list(made.texts)}, not {list(right.texts)}"
    return f"the text is {made.whole[-200:]!r}, not {right.whole[-200:]!r}"


def _is(whole: str, right: Learned) -> bool:
    """What a template writes behind the last answer, such as the next generation prompt, may be left out."""
    return right.whole.startswith(whole) and whole.rstrip().endswith(right.texts[-1].rstrip()) or whole == right.whole


def _forgery(made: Made, bench: Bench, template: Template, honest: dict[str, Any]) -> str | None:
    """Control tokens come from the template only: those of the same row in which nobody types any."""
    allowed = [bench.controls_of(right.whole) for right in template.expected(honest).right]
    if any(made.controls == controls[: len(made.controls)] for controls in allowed):
        return None
    return f"its control tokens are {made.controls}, not {allowed[0]}"


def _opening(template: Template) -> str:
    """What a user would type to open an answer in the assistant's name."""
    ask = [{"role": "user", "content": "zq"}]
    try:
        return template.stops[0] + template.render(ask, None, prompt=True).rpartition("zq")[2] if template.stops else ""
    except Refused:
        return "".join(template.stops[:1])
