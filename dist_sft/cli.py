"""One command for each thing a user does. Heavy libraries are imported by the commands that need them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dist_sft.config.load import load_config
from dist_sft.core.errors import SftError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Supervised fine-tuning that people can trust: a step is a set of conversations, all else is execution.",
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="settings that override it")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


def main() -> None:
    """The `dist-sft` command: an error of the user's is one clear message and exit code 1."""
    try:
        app()
    except SftError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(1)


@app.command(epilog="Example: `dist-sft train run.yaml train.steps=100 cluster.workers=2`")
def train(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run, or go on with, what a run file describes: on the Ray cluster that it names, else on this machine."""
    from dist_sft.cluster.runner import train as run

    result = run(load_config(run_file, overrides or []))
    if as_json:
        _print_json({**vars(result), "run_dir": str(result.run_dir)})
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in result.ledger.items()) or "none"
    resumed = f", resumed after step {result.resumed_at}" if result.resumed_at else ""
    print(f"{result.outcome}: {result.steps} steps{resumed}; rows dropped or cut: {dropped}")
    print(f"run folder: {result.run_dir}\nnext: dist-sft export {result.run_dir} OUT")


@app.command(epilog="Example: `dist-sft preview run.yaml --row 3`")
def preview(
    run_file: RunFile,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(min=0, help="row of the source, from 0")] = 0,
    source: Annotated[int, typer.Option(min=0, help="index in data.sources")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show one row as the tokens that the model gets, coloured by their loss weight."""
    from dist_sft.cluster.preview import preview_row, show

    view = preview_row(load_config(run_file, overrides or []), source, row)
    if as_json:
        _print_json(view.as_dict())
    else:
        show(view, Console())


@app.command(epilog="Example: `dist-sft steps run.yaml --from 10 --count 2 --world 8`")
def steps(
    run_file: RunFile,
    overrides: Overrides = None,
    start: Annotated[int, typer.Option("--from", min=0, help="first step, from 0")] = 0,
    count: Annotated[int, typer.Option(min=1, help="steps")] = 1,
    world: Annotated[int | None, typer.Option(min=1, help="ranks; default: cluster.workers")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the deal: the samples of each step, and who computes them. Reads the tokenizer, but no model weights."""
    from dist_sft.cluster.deal import deal, show

    config = load_config(run_file, overrides or [])
    dealt = deal(config, start, count, world or config.cluster.workers)
    if as_json:
        for step in dealt:
            _print_json(step.as_dict())
    else:
        show(dealt, Console())


@app.command(epilog="Example: `dist-sft check run.yaml`")
def check(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Everything that can fail before a GPU is taken: config, model, template, masks of the first rows, DeepSpeed."""
    from dist_sft.cluster.check import check_run, show

    findings = check_run(load_config(run_file, overrides or []))
    if as_json:
        _print_json(findings)
    else:
        show(findings, Console())


@app.command(epilog="Example: `dist-sft export runs/gsm8k out/gsm8k --merge`")
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="the folder of a run")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder")],
    step: Annotated[int | None, typer.Option(help="of an older checkpoint; default: the newest")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="add the adapter to the base model's weights")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model that transformers loads, or an adapter that peft loads, with tokenizer and template."""
    from dist_sft.cluster.export import export as write

    written = write(run_dir, out, step, merge)
    if as_json:
        _print_json({"out": str(written)})
    else:
        print(f"written: {written}")


@app.command(epilog="Example: `dist-sft demo runs/demo`")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="gets data, model, run and export")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="of the data, the model and the run")] = 0,
) -> None:
    """Make a small data set and model, train it the way a cluster would, and show what it learned."""
    from dist_sft.demo.command import run

    run(folder, seed)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
