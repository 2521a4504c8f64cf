"""One row as the model gets it."""

from dataclasses import asdict, dataclass
from typing import Any

from dist_sft.core.errors import DataError, RowError
from dist_sft.data.encoding import Rows
from dist_sft.data.order import SampleId
from dist_sft.run.data import make_encoder
from dist_sft.run.opened import OpenedRun


@dataclass(frozen=True)
class RowView:
    """A row token by token: ids, their texts, and the loss weight of each.

    text        the conversation as the template renders it
    supervised  the texts of all tokens with a weight above 0, joined
    spelled     indices of tokens that are letters of what the row has for a control token
    """

    where: str
    text: str
    tokens: list[str]
    ids: list[int]
    weights: list[float]
    supervised: str
    spelled: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preview_row(run: OpenedRun, source: int, row: int) -> RowView:
    """Encode one row of data.sources[source]. Raises DataError for a row that is not there, RowError for a bad one."""
    config = run.config
    if source >= len(config.data.sources):
        count = len(config.data.sources)
        raise DataError(
            f"there is no source {source}: the run file has {count}, counted from 0",
            where="--source",
            fix=f"use --source 0 to {count - 1}" if count > 1 else "leave --source out",
        )
    encoder = make_encoder(run)
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
        spelled=tuple(i for i, piece in enumerate(pieces) if piece.spelled),
    )
