"""preview, steps, data stats: what a run will learn from."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from dist_sft.cli.app import AsJson, Overrides, RunFile, app, data, print_json, working
from dist_sft.core.terminal import Terminal
from dist_sft.run.opened import open_run


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.cli.show.preview import show
        from dist_sft.commands.preview import preview_row

        view = preview_row(run, source, row)
    if as_json:
        print_json(view.as_dict())
    else:
        show(view, Terminal())


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.cli.show.steps import show
        from dist_sft.commands.deal import deal

        dealt = deal(run, start, count, world or run.config.cluster.most)
    if as_json:
        for step in dealt:
            print_json(step.as_dict())
    else:
        show(dealt, Terminal())


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.cli.show.stats import draw, refuse_other_picture, show
        from dist_sft.commands.stats import stats as look

        if png:
            refuse_other_picture(png)
        progress = partial(track, description="encoding", console=Terminal(stderr=True), transient=True)
        found = look(run, count or None, world or run.config.cluster.most, progress)
        if png:
            draw(found, png)
    if as_json:
        print_json(found.as_dict())
    else:
        show(found, Terminal())
        if png:
            print(f"drawn: {png}")
