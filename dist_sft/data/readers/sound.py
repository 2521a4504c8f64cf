"""Whether the columns of a table are what they say: no offset, length or index in them leads out of their buffers.

Arrow takes a file at its word, and reads beyond the end of a buffer where the file says so, which ends the process. So
each table from a file is looked at once before a value is read from it.
"""

import pyarrow as pa

BITS = 8
"""Rows that a byte can hold at most: of true and false."""
MOST_UNPACKED, MOST_TIMES = 1 << 30, 100
"""Bytes that any file may be unpacked to; and how many times its own size, if that is more."""


def refuse_unsound(table: pa.Table) -> None:
    """Raises ValueError. A text that is not UTF-8 harms only its row, and is found when that is read."""
    for column in table.columns:
        for chunk in column.chunks:
            chunk.validate()
            _without_text(chunk).validate(full=True)
    if table.num_rows > BITS * table.nbytes:
        raise ValueError(f"it says that it has {table.num_rows:,} rows, for which it has no room")


def most_unpacked(size: int) -> int:
    """Bytes to which so many may be unpacked. Text shrinks to a tenth, and seldom to a fiftieth."""
    return max(MOST_UNPACKED, MOST_TIMES * size)


def _without_text(column: pa.Array) -> pa.Array:
    """The same buffers, with texts taken for bytes."""
    kind = _bytes_for_text(column.type)
    return column if kind == column.type else column.view(kind)


def _bytes_for_text(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _bytes_for_text(kind.storage_type)
    for is_text, as_bytes in _BYTES:
        if is_text(kind):
            return as_bytes()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _bytes_for_text(kind.value_type), kind.ordered)
    if pa.types.is_map(kind):
        return pa.map_(_bytes_for_text(kind.key_type), _bytes_for_text(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([_field(field) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_field(kind.value_field), kind.list_size)
    return kind


def _field(field: pa.Field) -> pa.Field:
    return field.with_type(_bytes_for_text(field.type))


_BYTES = (
    (pa.types.is_string, pa.binary), (pa.types.is_large_string, pa.large_binary),
    (pa.types.is_string_view, pa.binary_view),
)  # fmt: skip
