"""What a model is, without its weights, as a value. What was found out once is kept, and then neither torch nor
transformers is imported.

config.json ─ transformers, torch's meta device ─> cache ─> Architecture ─> refusals, plan, data side of a run
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_sft.config.sections import ModelSection
from dist_sft.model.apart import CONFIG, ask
from dist_sft.model.headers import config_content, is_settled
from dist_sft.model.layout import Layout
from dist_sft.model.remembered import remember

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Values:
    """Keys of a config.json as attributes, under each name that transformers has for them, defaults among them."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name != "values" and not name.startswith("__") and name in self.values:
            return self.values[name]
        raise AttributeError(f"config.json has no {name}")


@dataclass(frozen=True)
class Architecture(Values):
    """A config.json, and what follows from it.

    text     its part for text; None: it has no other
    content  by which all this is remembered
    cache    folder; None: nothing is remembered
    read     the config.json by transformers, for who needs its model
    """

    text: Values | None
    content: bytes
    cache: Path | None
    read: Callable[[], "PretrainedConfig"]

    @classmethod
    def of(cls, configuration: "PretrainedConfig") -> "Architecture":
        """Of a configuration that is at hand; nothing is kept."""
        from dist_sft.model.configuration import spelled_out

        said = spelled_out(configuration)
        return cls(said["all"], _values(said["text"]), repr(configuration).encode(), None, lambda: configuration)

    @classmethod
    def load(cls, settings: ModelSection, cache: Path | None) -> "Architecture":
        """Raises ModelError."""
        read = _Once(settings)
        content = config_content(settings) if cache and is_settled(settings) else None
        if content is None:
            said = ask(settings, CONFIG, read.spelled_out)
            content = json.dumps(said).encode()
        else:
            content += (settings.revision or "").encode()
            said = remember(cache, "config", content, lambda: ask(settings, CONFIG, read.spelled_out))
        return cls(said["all"], _values(said["text"]), content, cache, read)

    def get_text_config(self) -> Values:
        """As transformers calls it: the part of the model that reads and writes text."""
        return self.text or self

    @property
    def configuration(self) -> "PretrainedConfig":
        """config.json as transformers reads it. Whoever changes it changes a copy. Raises ModelError."""
        return self.read()

    @cached_property
    def layout(self) -> Layout:
        """Raises ModelError for a config.json that describes no model."""

        def made(configuration: "PretrainedConfig") -> dict[str, Any]:
            from dist_sft.model.meta import lay_out

            return lay_out(configuration)

        return Layout.of(self.remembered("layout", made))

    def remembered(
        self, kind: str, make: Callable[["PretrainedConfig"], dict[str, Any]], of: str = ""
    ) -> dict[str, Any]:
        """What `make` finds out about it, as JSON values. of: what that depends on besides."""
        return remember(self.cache, kind, self.content + of.encode(), lambda: make(self.read()))


class _Once:
    """Reads a config.json by transformers, once, when it is first asked."""

    def __init__(self, settings: ModelSection) -> None:
        self._settings = settings

    @cached_property
    def _found(self) -> "PretrainedConfig":
        from dist_sft.model.configuration import load_configuration

        return load_configuration(self._settings)

    def __call__(self) -> "PretrainedConfig":
        return self._found

    def spelled_out(self) -> dict[str, Any]:
        from dist_sft.model.configuration import spelled_out

        return spelled_out(self._found)


def _values(said: dict[str, Any] | None) -> Values | None:
    return None if said is None else Values(said)
