"""A row of a table as its writer had it, before it was given the types of its columns.

A column type gives each object the keys of all others, with null in them: nulls inside a column are taken for that.
What is JSON by its type (Arrow's own, which the Json feature of `datasets` is) is decoded, and its nulls are its own.
"""

import json
from typing import Any

import pyarrow as pa


def as_written(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """A row without what the types of its columns did to it. A null that is a whole column stays."""
    types = dict(zip(schema.names, schema.types, strict=True))
    return {key: _as_written(value, types.get(key)) for key, value in row.items()}


def _as_written(value: Any, kind: pa.DataType | None) -> Any:
    if isinstance(kind, pa.JsonType):
        return _decoded(value)
    if isinstance(value, dict):
        inner = {field.name: field.type for field in kind} if kind is not None and pa.types.is_struct(kind) else {}
        return {key: _as_written(one, inner.get(key)) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        items = kind.value_type if kind is not None and hasattr(kind, "value_type") else None
        return [_as_written(one, items) for one in value]
    return value


def _decoded(value: Any) -> Any:
    """The value of a JSON text; of one that is none, the text. `datasets` has decoded it already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
