"""check, train, export, demo: a run on this machine, or on the cluster that the run file names."""

from pathlib import Path
from typing import Annotated

import typer

from dist_sft.cli.app import AsJson, Overrides, RunFile, Secrets, app, print_json, say, working
from dist_sft.config import advice
from dist_sft.core.terminal import Terminal
from dist_sft.run.opened import open_run


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.cli.show.check import show
        from dist_sft.commands.check import check_run

        report = check_run(run, fast, rows)
    if as_json:
        print_json(report.as_dict())
    else:
        show(report, Terminal())
    report.refuse()
    if not as_json:
        print("ok")


@app.command(
    epilog="Examples: `dist-sft train run.yaml`, `dist-sft train run.yaml train.steps=100 cluster.workers=2`. "
    "The same command goes on after a crash or Ctrl-C."
)
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    secret: Secrets = None,
    as_json: AsJson = False,
) -> None:
    """Run, or go on with, what a run file describes: on the Ray cluster that it names, else on this machine."""
    run = open_run(run_file, overrides or [])
    config = run.config
    for warning in advice.warnings(config):
        say(f"warning: {warning}", "yellow")
    with working(as_json):
        from dist_sft.cluster.runner import train as train_run

        if secret:
            from dist_sft.cluster.secrets import refuse_missing
            from dist_sft.cluster.session import connect, quiet

            quiet(config)
            connect(config)
            refuse_missing(secret)
        try:
            result = train_run(run)
        except KeyboardInterrupt:
            say(f"the same command goes on from the newest checkpoint in {config.run.dir}, if there is one", "yellow")
            raise
    if as_json:
        print_json({**vars(result), "run_dir": str(result.run_dir)})
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in result.ledger.items()) or "none"
    resumed = f", resumed after step {result.resumed_at}" if result.resumed_at else ""
    print(f"{result.outcome}: {result.steps} steps{resumed}; rows dropped or cut: {dropped}")
    print(f"run folder: {result.run_dir}\nnext: dist-sft export {result.run_dir} OUT")


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
    with working(as_json):
        from dist_sft.commands.export import export as write
        from dist_sft.commands.export import notes

        written, said = write(run_dir, out, step, merge), notes(run_dir, merge)
    if as_json:
        print_json({"out": str(written), "notes": said})
    else:
        print("\n".join((f"written: {written}", *said)))


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
