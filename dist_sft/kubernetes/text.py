"""Objects -> YAML that all read alike: this project (YAML 1.2), PyYAML (1.1), kubectl (a mixture)."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from dist_sft.config.document import scalar

_OCTAL = re.compile(r"[-+]?0[ob]\d")


def as_documents(values: Sequence[Any]) -> str:
    """One document for each value; texts of several lines as blocks, so that a reviewer can read them."""
    return yaml.dump_all(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def as_list(objects: Sequence[Any]) -> dict[str, Any]:
    """Objects as one, which kubectl applies as well."""
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted where YAML 1.2 would read something else than text: PyYAML itself thinks of 1.1 only."""
    style = None
    if "\n" in text:
        style = "|"
    elif scalar(text) != text or _OCTAL.match(text):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
