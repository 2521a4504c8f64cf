"""The verdict on every kind of conversation under every template, as a table.

    python -m tests.chat.templates.table                          cells that are not right, and totals
    python -m tests.chat.templates.table --only gemma --whole     some templates, with whole tokenizers
    python -m tests.chat.templates.table --write docs/templates.md

Takes a minute and a half.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chat.templates.conversations import KINDS
from tests.chat.templates.judge import Cell, judged
from tests.chat.templates.listing import Entry, listing, packages

SIGNS = {"right": "✓", "justified": "-", "unjustified": "no", "objection": "?", "wrong": "✗"}
PAGE = Path(__file__).parents[3] / "docs" / "templates.md"

_INTRO = """\
# Which chat templates work

A run uses the chat template of its tokenizer (`data.template: auto`), or a file. The table shows {kinds} kinds of
conversation under {templates} chat templates of {families} families. The tests in `tests/chat/templates` work out
which tokens each must teach from what inference sees, without code of `dist_sft/chat`:

- an answer begins where the generation prompt ends; an empty thought that no message holds is context;
- it ends with the tokens on which generation stops.

| sign | meaning | cells |
|---|---|---|
{legend}

The templates come from {packages}.
Their tokenizers are the models' own where a package brings them, otherwise another real one with the template's control
tokens added.

    python -m tests.chat.templates.table --write docs/templates.md     # makes this page

"""
_MEANING = {
    "right": "exactly the right tokens are learned, and both ways to find them agree",
    "justified": "refused: the template itself raises, drops a part of the row, or ends no answer with a stop token",
    "unjustified": "refused, although the template can hold it: `tests/chat/templates/refused.toml` says why",
    "objection": "right, but the second way objects, and the run stops",
    "wrong": "something else is learned",
}


def line(entry: Entry, cells: Sequence[Cell]) -> str:
    """The row of one template."""
    signs = {cell.kind: SIGNS[cell.verdict] for cell in cells}
    return f"| {entry.name} | {entry.family} | " + " | ".join(signs[kind] for kind in KINDS) + " |"


def page(cells: dict[Entry, list[Cell]]) -> str:
    """The page of docs."""
    totals = Counter(cell.verdict for row in cells.values() for cell in row)
    legend = "\n".join(f"| {SIGNS[name]} | {meaning} | {totals[name]} |" for name, meaning in _MEANING.items())
    sources = ", ".join(f"{package.name} {package.version}" for package in packages().values())
    head = _INTRO.format(
        kinds=len(KINDS), templates=len(cells), families=len({entry.family for entry in cells}), legend=legend,
        packages=sources,
    )  # fmt: skip
    columns = "| template | family | " + " | ".join(kind.replace("_", " ") for kind in KINDS) + " |"
    return "\n".join((head + columns, "|---" * (len(KINDS) + 2) + "|", *(line(*row) for row in cells.items()), ""))


def totals_of(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Cells by sign, as the page's legend says, and as its table shows."""
    legend = {sign: int(count) for sign, count in re.findall(r"^\| (\S+) \| .* \| (\d+) \|$", text, re.M)}
    rows = [row.split(" | ")[2:] for row in text[text.index("|---|---|---|---|") :].splitlines()[1:]]
    shown = Counter(sign.rstrip(" |") for row in rows for sign in row)
    return legend, {sign: shown[sign] for sign in SIGNS.values()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="templates whose name or family holds this")
    options.add_argument("--whole", action="store_true", help="whole tokenizers, which take seconds each")
    options.add_argument("--justified", action="store_true", help="show justified refusals, too")
    options.add_argument("--write", type=Path, help="write the page of docs")
    chosen = options.parse_args()
    cells: dict[Entry, list[Cell]] = {}
    for entry in listing():
        if chosen.only not in entry.name and chosen.only not in entry.family:
            continue
        cells[entry] = judged(entry, chosen.whole)
        for cell in cells[entry]:
            if cell.verdict != "right" and (chosen.justified or cell.verdict != "justified"):
                print(f"{cell.verdict:12} {cell.template:36} {cell.kind:18} {cell.why}", flush=True)
    print(dict(Counter(cell.verdict for row in cells.values() for cell in row)))
    if chosen.write:
        chosen.write.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
