"""A .txt file: documents separated by blank lines, as rows {"text": document}.

A corpus in one file is thereby many samples, each of which can be packed and has a line of its own. A document with
blank lines inside, or a whole file as one, is written as JSON Lines: {"text": "..."}.
"""

from pathlib import Path
from typing import Any

from dist_sft.data.readers.base import File, Values, decode


class Documents(Values):
    """Documents of a text file in memory. lines[i]: 1-based line on which document i begins."""

    def __init__(self, name: str, texts: list[str], lines: list[int]) -> None:
        self.name, self.texts, self.lines = name, texts, lines

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, i: int) -> str:
        return f"{self.name}:{self.lines[i]}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"text": self.texts[i]}


def read_text(file: File, cache: Path | None = None) -> Documents:
    """A text file.

    Raises:
        DataError: not UTF-8.
    """
    blocks: list[list[str]] = []
    lines: list[int] = []
    blank = True
    for number, line in enumerate(decode(file).replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            if blank:
                blocks.append([])
                lines.append(number)
            blocks[-1].append(line)
        blank = not line.strip()
    return Documents(file.name, ["\n".join(block) for block in blocks], lines)
