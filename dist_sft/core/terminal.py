"""What a person reads at a terminal: no text of a row, a file or a library commands it."""

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console
from rich.segment import Segment

from dist_sft.core.errors import printable
from dist_sft.core.redact import scrubbed


class Terminal(Console):
    """Rich's console, which by itself lets an escape sequence inside a text through."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(printable(text, kept="\n\t"), style)


class ScrubbedStream:
    """Standard error, on which anyone may write (usage, warnings of libraries, tracebacks): without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrubbed(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
