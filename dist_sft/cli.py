"""One command for each thing a user does. Heavy libraries are imported by the commands that need them.

A result goes to standard output and nothing else does, where --json asks for it. Exit codes: 0 done, 1 an SftError,
2 a command that was typed wrongly, 130 Ctrl-C.
"""

import contextlib
import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dist_sft.config import advice
from dist_sft.config.load import load_config
from dist_sft.core.errors import SftError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Supervised fine-tuning that people can trust: a step is a set of conversations, all else is execution.",
    epilog="Start with `dist-sft demo`, then `dist-sft check run.yaml`, `dist-sft preview run.yaml --row 0`, "
    "`dist-sft train run.yaml`, `dist-sft export RUN_DIR OUT`.",
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run file")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="settings that override it, e.g. train.steps=100 model.tuning.rank=8"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


data = typer.Typer(no_args_is_help=True, help="Look at the data of a run, before and beside training.")
app.add_typer(data, name="data")


def main() -> None:
    """The `dist-sft` command: an error of the user's is one clear message and exit code 1."""
    _quiet()
    try:
        app()
    except SftError as error:
        _say(f"error: {error}", "red")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say("interrupted", "yellow")
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dist-sft {importlib.metadata.version('dist-sft')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version, and exit")
    ] = False,
) -> None:
    """What stands before the command."""


@app.command(
    epilog="Examples: `dist-sft train run.yaml`, `dist-sft train run.yaml train.steps=100 cluster.workers=2`. "
    "The same command goes on after a crash or Ctrl-C."
)
def train(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run, or go on with, what a run file describes: on the Ray cluster that it names, else on this machine."""
    config = load_config(run_file, overrides or [])
    for warning in advice.warnings(config):
        _say(f"warning: {warning}", "yellow")
    with _working(as_json):
        from dist_sft.cluster.runner import train as run

        try:
            result = run(config)
        except KeyboardInterrupt:
            _say(f"the same command goes on from the newest checkpoint in {config.run.dir}, if there is one", "yellow")
            raise
    if as_json:
        _print_json({**vars(result), "run_dir": str(result.run_dir)})
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in result.ledger.items()) or "none"
    resumed = f", resumed after step {result.resumed_at}" if result.resumed_at else ""
    print(f"{result.outcome}: {result.steps} steps{resumed}; rows dropped or cut: {dropped}")
    print(f"run folder: {result.run_dir}\nnext: dist-sft export {result.run_dir} OUT")


@app.command(
    epilog="Examples: `dist-sft preview run.yaml --row 3`, "
    "`dist-sft preview run.yaml --source 1 --row 0 data.template=chatml --json`"
)
def preview(
    run_file: RunFile,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(min=0, help="row of the source, from 0")] = 0,
    source: Annotated[int, typer.Option(min=0, help="index in data.sources")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show one row as the tokens that the model gets, coloured by their loss weight."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.commands.preview import preview_row, show

        view = preview_row(config, source, row)
    if as_json:
        _print_json(view.as_dict())
    else:
        show(view, Console())


@app.command(
    epilog="Examples: `dist-sft steps run.yaml`, `dist-sft steps run.yaml --from 10 --count 2 --world 8 --json`"
)
def steps(
    run_file: RunFile,
    overrides: Overrides = None,
    start: Annotated[int, typer.Option("--from", min=0, help="first step, from 0")] = 0,
    count: Annotated[int, typer.Option(min=1, help="steps")] = 1,
    world: Annotated[int | None, typer.Option(min=1, help="ranks; default: cluster.workers")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the deal: the samples of each step, and who computes them. Reads the tokenizer, but no model weights."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.commands.deal import deal, show

        dealt = deal(config, start, count, world or config.cluster.most)
    if as_json:
        for step in dealt:
            _print_json(step.as_dict())
    else:
        show(dealt, Console())


@data.command(
    epilog="Examples: `dist-sft data stats run.yaml`, `dist-sft data stats run.yaml --steps 0 --png stats.png`, "
    "`dist-sft data stats run.yaml --world 64 train.tokens_per_pack=16384 --json`"
)
def stats(
    run_file: RunFile,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("--steps", min=0, help="first steps of the run; 0: all")] = 100,
    world: Annotated[int | None, typer.Option(min=1, help="ranks; default: cluster.workers")] = None,
    png: Annotated[Path | None, typer.Option(help="also draw a picture into this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Rows, tokens, lengths by source, the mixture as it comes about, how steps pack, and what is not learned."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.commands.stats import draw, show
        from dist_sft.commands.stats import stats as look

        found = look(config, count or None, world or config.cluster.most, Console(stderr=True))
        if png:
            draw(found, png)
    if as_json:
        _print_json(found.as_dict())
    else:
        show(found, Console())
        if png:
            print(f"drawn: {png}")


@app.command(epilog="Examples: `dist-sft check run.yaml`, `dist-sft check run.yaml cluster.workers=2 --json`")
def check(
    run_file: RunFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="prove the masks of so many rows, the run's first")] = 256,
    fast: Annotated[bool, typer.Option("--fast", help="leave out the proofs on a model, which take a minute")] = False,
    as_json: AsJson = False,
) -> None:
    """Everything that can fail before a GPU is taken: settings, machine, run folder, model, template, rows, masks;
    and proofs: exactly the answers are learned, packed as alone, several ranks as one, resumed as never stopped."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.commands.check import as_json as findings_as_json
        from dist_sft.commands.check import check_run, show
        from dist_sft.commands.proofs.proof import refuse

        findings = check_run(config, fast, rows)
    if as_json:
        _print_json(findings_as_json(findings))
    else:
        show(findings, Console())
    refuse(findings["proofs"])
    if not as_json:
        print("ok")


@app.command(
    epilog="Examples: `dist-sft plan run.yaml --nodes 2 --gpus 8 --gpu H100`, "
    "`dist-sft plan run.yaml --gpus 1 --gpu-memory 24GB model.gradient_checkpointing=true --json`"
)
def plan(
    run_file: RunFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of each; default: cluster.workers over nodes")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="e.g. H100, A100, A100-40, L40S")] = None,
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="of one, e.g. 80GB; in place of --gpu")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1.0, help="share of the GPU's peak that is reached")] = 0.4,
    rows: Annotated[int, typer.Option(min=1, help="look at about so many rows, the run's first")] = 256,
    as_json: AsJson = False,
) -> None:
    """What a run will need before a GPU is taken: memory by part, network, time, disk; and what would make it fit."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.commands.planning import plan_run
        from dist_sft.commands.planning.machine import Machine
        from dist_sft.commands.planning.shown import show

        machine = Machine.of(nodes, gpus or max(1, config.cluster.most // nodes), gpu, gpu_memory, mfu)
        planned = plan_run(config, machine, rows)
    if as_json:
        _print_json(planned.as_dict())
    else:
        show(planned.plan, planned.changes, Console())
    planned.refuse()


@app.command(
    epilog="Examples: `dist-sft preflight run.yaml cluster.address=auto`, "
    "`RAY_ADDRESS=10.0.0.5:6379 dist-sft preflight run.yaml --json`"
)
def preflight(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at every node of the Ray cluster that could hold workers: one storage for all, versions, clocks, disk,
    shared memory, GPUs, open files, ports, bandwidth of an all-reduce between nodes. `train` does most of it, too."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.commands.preflight import look_at_cluster, show

        report = look_at_cluster(config)
    if as_json:
        _print_json(report.as_dict())
    else:
        show(report, Console())
    report.refuse()
    if not as_json:
        print("ok")


@app.command(
    epilog="Examples: `dist-sft export runs/gsm8k out/gsm8k`, `dist-sft export runs/lora out/merged --step 200 --merge`"
)
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="run.dir of a run file that was trained")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder")],
    step: Annotated[int | None, typer.Option(help="of an older checkpoint; default: the newest")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="add the adapter to the base model's weights")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model that transformers loads, or an adapter that peft loads, with tokenizer and template."""
    with _working(as_json):
        from dist_sft.commands.export import export as write

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


def _quiet() -> None:
    """Libraries speak up at import about what is no concern of the user's; DeepSpeed on standard output, even."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _working(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """While a command works: with --json, what anyone prints goes to standard error, out of the result's way."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _say(text: str, style: str) -> None:
    """A message on standard error, never wrapped: a path in it can be copied."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
