"""The verdict on every kind of conversation under every template, as a table.

    python -m tests.chat.templates.table                          all cells that are not right, and totals
    python -m tests.chat.templates.table --only gemma --whole     some templates, with whole tokenizers
    python -m tests.chat.templates.table --write docs/templates.md
"""

import argparse
from collections import Counter

from tests.chat.templates.judge import judged
from tests.chat.templates.listing import listing


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="templates whose name or family holds this")
    options.add_argument("--whole", action="store_true", help="whole tokenizers, which take seconds each")
    options.add_argument("--justified", action="store_true", help="show justified refusals, too")
    chosen = options.parse_args()
    totals: Counter[str] = Counter()
    for entry in listing():
        if chosen.only not in entry.name and chosen.only != entry.family:
            continue
        for cell in judged(entry, chosen.whole):
            totals[cell.verdict] += 1
            if cell.verdict != "right" and (chosen.justified or cell.verdict != "justified"):
                print(f"{cell.verdict:12} {cell.template:36} {cell.kind:18} {cell.why}")
    print(dict(totals))


if __name__ == "__main__":
    main()
