"""A row as tokens, coloured by their loss weight."""

import itertools

from rich.text import Text

from dist_sft.commands.preview import RowView
from dist_sft.core.terminal import Terminal


def show(view: RowView, console: Terminal) -> None:
    """Learned tokens on green (darker for smaller weights), context grey; without colours, learned ones in brackets.

    Letters that spell a control token are red and underlined, or in brackets of their own.
    """
    coloured = console.color_system is not None
    learned = Text("learned", style=_style(1.0)) if coloured else Text("⟦learned⟧")
    head = Text.assemble(
        (view.where, "bold"),
        f"  {len(view.ids)} tokens, {sum(weight > 0 for weight in view.weights)} ",
        learned,
        ", others ",
        ("context", _style(0.0)),
    )
    weights = sorted({weight for weight in view.weights if weight > 0})
    if weights != [1.0]:
        head.append(f"; loss weights {', '.join(f'{weight:g}' for weight in weights)}")
    if view.spelled:
        head.append("; ")
        head.append(_mark("text that spells a control token", coloured))
    console.print(head, soft_wrap=True)
    console.print(_coloured(view) if coloured else _bracketed(view), soft_wrap=True)


def _style(strength: float) -> str:
    """strength: share of the largest weight of the row."""
    return f"white on rgb(0,{int(40 + 100 * strength)},0)" if strength else "bright_black"


def _coloured(view: RowView) -> Text:
    most = max(view.weights)
    spelled = set(view.spelled)
    styles = (f"{_style(weight / most)}{SPELLED if i in spelled else ''}" for i, weight in enumerate(view.weights))
    return Text.assemble(*((_visible(piece), style) for piece, style in zip(view.tokens, styles, strict=True)))


def _bracketed(view: RowView) -> Text:
    spelled = set(view.spelled)
    kinds = [(weight > 0, i in spelled) for i, weight in enumerate(view.weights)]
    runs = itertools.groupby(zip(view.tokens, kinds, strict=True), key=lambda pair: pair[1])
    parts = [(kind, "".join(_visible(piece) for piece, _ in run)) for kind, run in runs]
    text = ""
    for learned, same in itertools.groupby(parts, key=lambda part: part[0][0]):
        inside = "".join(f"⟪{part}⟫" if letters else part for (_, letters), part in same)
        text += f"⟦{inside}⟧" if learned else inside
    return Text(text)


def _mark(text: str, coloured: bool) -> Text:
    return Text(text, style=f"bright_black{SPELLED}") if coloured else Text(f"⟪{text}⟫")


SPELLED = " underline red"
"""Style of letters that spell a control token, behind that of their weight."""


def _visible(text: str) -> str:
    """Control characters as pictures of themselves: a row's text must not command the terminal."""
    return text.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
