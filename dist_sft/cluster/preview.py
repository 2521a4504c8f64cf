"""One row as the model gets it."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from dist_sft.cluster.assembly import make_encoder
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.encoding import Rows
from dist_sft.data.order import SampleId


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
    encoder = make_encoder(config)
    if source >= len(config.data.sources):
        raise DataError(
            f"there is no data.sources.{source}", fix=f"--source goes from 0 to {len(config.data.sources) - 1}"
        )
    rows = Rows(config.data.sources, config.data, encoder)
    if row >= rows.lengths[source]:
        raise DataError(
            f"there is no row {row}",
            where=rows.sources[source].name,
            fix=f"--row goes from 0 to {rows.lengths[source] - 1}",
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
    """Learned tokens on green (darker for smaller weights), context plain."""
    text = Text()
    most = max(view.weights) or 1.0
    for piece, weight in zip(view.tokens, view.weights, strict=True):
        strength = int(40 + 100 * weight / most)
        text.append(piece, style=f"white on rgb(0,{strength},0)" if weight else "bright_black")
    learned = sum(weight > 0 for weight in view.weights)
    console.print(f"[bold]{view.where}[/bold]  {len(view.ids)} tokens, {learned} learned ", end="")
    console.print(Text(" learned ", style="white on rgb(0,140,0)"), Text("context", style="bright_black"))
    console.print(text, soft_wrap=True)
