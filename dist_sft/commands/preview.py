"""One row as the model gets it."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.encoding import Rows
from dist_sft.data.order import SampleId
from dist_sft.run.data import make_encoder


@dataclass(frozen=True)
class RowView:
    """A row token by token: ids, their texts, and the loss weight of each.

    text        the conversation as the template renders it
    supervised  the texts of all tokens with a weight above 0, joined
    """

    where: str
    text: str
    tokens: list[str]
    ids: list[int]
    weights: list[float]
    supervised: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preview_row(config: RunConfig, source: int, row: int) -> RowView:
    """Encode one row of data.sources[source]. Raises DataError for a row that is not there, RowError for a bad one."""
    if source >= len(config.data.sources):
        count = len(config.data.sources)
        raise DataError(
            f"there is no source {source}: the run file has {count}, counted from 0",
            where="--source",
            fix=f"use --source 0 to {count - 1}" if count > 1 else "leave --source out",
        )
    encoder = make_encoder(config)
    rows = Rows(config.data.sources, config.data, encoder)
    if row >= rows.lengths[source]:
        raise DataError(
            f"there is no row {row}: it has {rows.lengths[source]}, counted from 0",
            where=rows.sources[source].name,
            fix=f"use --row 0 to {rows.lengths[source] - 1}",
        )
    sample = SampleId(row, source, row)
    item = rows.parse(sample)
    try:
        encoded = encoder.encode(item)
    except RowError as error:
        raise error.at(rows.where(sample)) from None
    pieces = encoder.preview(item)[: len(encoded)]
    return RowView(
        where=rows.where(sample),
        text=encoder.render(item),
        tokens=[piece.text for piece in pieces],
        ids=encoded.tokens.tolist(),
        weights=encoded.weights.tolist(),
        supervised=encoder.text_of(encoded.tokens[encoded.weights > 0].tolist()),
    )


def show(view: RowView, console: Console) -> None:
    """Learned tokens on green (darker for smaller weights), context grey; without colours, learned ones in brackets."""
    coloured = console.color_system is not None
    learned = Text("learned", style=_style(1.0)) if coloured else Text("⟦learned⟧")
    head = Text.assemble(
        (view.where, "bold"),
        f"  {len(view.ids)} tokens, {sum(weight > 0 for weight in view.weights)} ",
        learned,
        ", others ",
        ("context", _style(0.0)),
    )
    weights = sorted({weight for weight in view.weights if weight > 0})
    if weights != [1.0]:
        head.append(f"; loss weights {', '.join(f'{weight:g}' for weight in weights)}")
    console.print(head, soft_wrap=True)
    console.print(_coloured(view) if coloured else _bracketed(view), soft_wrap=True)


def _style(strength: float) -> str:
    """strength: share of the largest weight of the row."""
    return f"white on rgb(0,{int(40 + 100 * strength)},0)" if strength else "bright_black"


def _coloured(view: RowView) -> Text:
    most = max(view.weights)
    pieces = zip(view.tokens, view.weights, strict=True)
    return Text.assemble(*((_visible(piece), _style(weight / most)) for piece, weight in pieces))


def _bracketed(view: RowView) -> Text:
    runs = itertools.groupby(zip(view.tokens, view.weights, strict=True), key=lambda pair: pair[1] > 0)
    parts = ((learned, "".join(_visible(piece) for piece, _ in run)) for learned, run in runs)
    return Text("".join(f"⟦{part}⟧" if learned else part for learned, part in parts))


def _visible(text: str) -> str:
    """Control characters as pictures of themselves: a row's text must not command the terminal."""
    return text.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
