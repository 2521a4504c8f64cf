"""The demo from end to end: make chats and a model, score it, train it with the cluster's code, export, score again.

folder/
  train.jsonl  held_out.jsonl  model/  run.yaml     made here; `dist-sft train run.yaml` is the same run
  run/                                              checkpoints, metrics, ledger, offline W&B
  export/                                           what transformers loads
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from dist_sft.cluster.runner import train
from dist_sft.commands.export import export
from dist_sft.core.errors import ConfigError, TrainingError
from dist_sft.core.ownership import mark, marked_facts, remove_ours
from dist_sft.core.terminal import Terminal
from dist_sft.demo import dataset, model, run_file
from dist_sft.demo.answers import Answer, ask, score, score_by_kind
from dist_sft.demo.dataset import Row
from dist_sft.run.opened import open_run

TRAINING_ROWS, HELD_OUT_ROWS = 12_000, 256
MADE = ("train.jsonl", "held_out.jsonl", "model", "run.yaml", "run", "export")
"""What is in the folder afterwards."""
LEARNED = 0.6
"""Share of exact matches below which the demo has failed."""


def run(folder: Path, seed: int = 0) -> None:
    """Make everything in a folder afresh, and print what the model learned.

    Raises:
        ConfigError: the folder holds something else than an earlier demo.
        TrainingError: the model learned too little.
    """
    console, begin = Terminal(), time.monotonic()
    disable_progress_bar()  # of transformers: a bar for each loading of a small model
    folder = folder.resolve()
    _start_afresh(folder)
    try:
        _run(folder, seed, console, begin)
    finally:
        _record(folder, running=False)


def _run(folder: Path, seed: int, console: Terminal, begin: float) -> None:
    held_out = _make(folder, seed)
    _record(folder, running=True)
    console.print(f"made {TRAINING_ROWS} chats, {len(held_out)} held-out ones and a small model in {folder}")
    before = ask(folder / "model", held_out)
    console.print(f"before training: {score(before):.0%} of the held-out answers are exactly right")
    opened = open_run(folder / "run.yaml")
    train(opened)
    exported = export(opened.folder, folder / "export")
    after = ask(exported, held_out)
    console.print(scores(before, after), examples(before, after))
    console.print(f"{exported} is a model for transformers; {time.monotonic() - begin:.0f} s in all")
    if score(after) < LEARNED:
        raise TrainingError(
            f"the demo learned too little: {score(after):.0%} of the held-out answers are exactly right",
            where=str(folder),
            fix=f"look at run/metrics.jsonl: something is broken, for {LEARNED:.0%} is far below the usual",
        )


def scores(before: Sequence[Answer], after: Sequence[Answer]) -> Table:
    """Exact match by kind, before and after."""
    table = Table(title="exact match on held-out questions")
    table.add_column("kind", footer="all")
    table.add_column("before", justify="right", footer=f"{score(before):.0%}")
    table.add_column("after", justify="right", footer=f"{score(after):.0%}")
    table.show_footer = True
    untrained, trained = score_by_kind(before), score_by_kind(after)
    for kind in sorted(trained):
        table.add_row(kind, f"{untrained[kind]:.0%}", f"{trained[kind]:.0%}")
    return table


def examples(before: Sequence[Answer], after: Sequence[Answer]) -> Table:
    """One held-out chat of each kind, and what the model says to it before and after."""
    table = Table("chat", "right", "before", "after", title="answers", show_lines=True)
    first_of = {answer.row.kind: index for index, answer in reversed(list(enumerate(after)))}
    for _, index in sorted(first_of.items()):
        row = after[index].row
        chat = "\n".join(f"{turn['role']}: {turn['content']}" for turn in row.prompt)
        said = (before[index].text, after[index].text)
        table.add_row(_plain(chat, 400), _plain(row.answer), *map(_plain, said))
    return table


def _plain(text: str, longest: int = 24) -> str:
    """Printable text of limited length, without rich's markup: an untrained model says anything."""
    shown = "".join(
        letter if (letter.isprintable() and letter != "\ufffd") or letter == "\n" else "·" for letter in text
    )
    return shown[:longest].replace("[", r"\[")


def _start_afresh(folder: Path) -> None:
    """Remove what an earlier demo made in a folder; refuse one that holds something else under these names."""
    facts = marked_facts(folder)
    if facts.get("kind") != "demo" and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "name a new folder, or remove this one"
        raise ConfigError("this holds something else than a demo", where=str(folder), fix=fix)
    known = facts.get("files", {})
    made = ("run/", "export/") if facts.get("running") else ()  # a demo that was killed kept no record of these
    for name, file in (present := _files(folder)).items():
        if known.get(name) != file and not name.startswith(made):
            raise ConfigError(
                "the demo has not left it so", where=str(folder / name), fix="move it, or name a new folder"
            )
    for name in MADE:
        if name in present:
            (folder / name).unlink()
        else:
            remove_ours(folder / name, lambda inner, name=name: f"{name}/{inner}" in present)  # type: ignore[misc]
    folder.mkdir(parents=True, exist_ok=True)
    mark(folder, {"kind": "demo"})


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and date of each file under a name that the demo makes."""
    paths = [path for name in MADE for path in (folder / name, *(folder / name).rglob("*"))]
    return {
        str(path.relative_to(folder)): [(stat := path.lstat()).st_size, stat.st_mtime_ns]
        for path in paths
        if path.is_symlink() or path.is_file()
    }


def _record(folder: Path, running: bool) -> None:
    """Keep what the demo has made, so that the next one removes that and nothing else."""
    mark(folder, {"kind": "demo", "running": running, "files": _files(folder)})


def _make(folder: Path, seed: int) -> list[Row]:
    """Write data, model and run file; the held-out rows."""
    held_out = dataset.conversations(seed, HELD_OUT_ROWS, held_out=True)
    dataset.write(folder / "held_out.jsonl", held_out)
    run_file.write(folder, seed, torch.cuda.device_count())
    rows = dataset.conversations(seed, TRAINING_ROWS, held_out=False)
    dataset.write(folder / "train.jsonl", rows)
    model.save(folder / "model", seed, (turn["content"] for row in rows for turn in row.messages))
    return held_out
