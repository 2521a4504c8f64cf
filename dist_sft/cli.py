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
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dist_sft.config import advice
from dist_sft.config.load import load_config
from dist_sft.core.errors import SftError

if TYPE_CHECKING:
    from dist_sft.cluster.jobs import Jobs

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
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="dashboard of the head, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS"),
]
Patience = Annotated[float, typer.Option(min=0, help="seconds without an answer after which following is given up")]
Secrets = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="a variable that every node must have; no value is ever sent; may be repeated"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="as dist-sft submit said it")]


data = typer.Typer(no_args_is_help=True, help="Look at the data of a run, before and beside training.")
app.add_typer(data, name="data")
job = typer.Typer(no_args_is_help=True, help="Look at, follow and stop what was submitted to a cluster.")
app.add_typer(job, name="job")


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
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    secret: Secrets = None,
    as_json: AsJson = False,
) -> None:
    """Run, or go on with, what a run file describes: on the Ray cluster that it names, else on this machine."""
    config = load_config(run_file, overrides or [])
    for warning in advice.warnings(config):
        _say(f"warning: {warning}", "yellow")
    with _working(as_json):
        from dist_sft.cluster.runner import train as run

        if secret:
            from dist_sft.cluster.secrets import refuse_missing
            from dist_sft.cluster.session import connect, quiet

            quiet(config)
            connect(config)
            refuse_missing(secret)
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
    print(f"goodput: {result.goodput:.0%} of the time since the first start went into steps that count")
    print(f"run folder: {result.run_dir}\nnext: dist-sft export {result.run_dir} OUT")


@app.command(
    epilog="Examples: `dist-sft submit run.yaml --address http://HEAD:8265`, "
    "`dist-sft submit run.yaml train.steps=100 --secret WANDB_API_KEY --include prompts --no-wait`. Where the cluster "
    "asks for a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. "
    "After a failure, the same command goes on from the newest checkpoint."
)
def submit(
    run_file: RunFile,
    overrides: Overrides = None,
    address: Address = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="upload this, too: file, folder or glob of this folder; may be repeated"),
    ] = None,
    secret: Secrets = None,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: what Ray sets up for the job: env_vars, pip, uv, ...")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the log to the job's end")] = True,
    patience: Patience = 600,
    as_json: AsJson = False,
) -> None:
    """Train on a Ray cluster from outside: upload the run file and what it names by relative paths, run
    `dist-sft train` there, follow its log, and exit with its result: 0 only when the run is complete."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.cluster.follow import how_to_go_on
        from dist_sft.cluster.jobs import jobs_at
        from dist_sft.cluster.package import megabytes
        from dist_sft.commands import submit as commands

        submission = commands.prepare(
            run_file, config, overrides or [], include=include or [], secrets=secret or [], runtime_env=runtime_env
        )
        jobs = jobs_at(address)
        job_id = commands.submit(jobs, submission)
    files = submission.package
    _say(f"job {job_id}: {len(files.files)} files, {megabytes(files.size)}: {submission.command}", "green")
    if wait:
        _follow(jobs, job_id, patience, as_json)
    elif as_json:
        _print_json(jobs.get(job_id).as_dict())
    else:
        _say(how_to_go_on(job_id, jobs.address), "green")
        print(job_id)


@job.command(epilog="Example: `dist-sft job status gsm8k-1 --address http://HEAD:8265 --json`")
def status(job_id: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a job is. Exit code 0 whatever it is: --json has the job's own."""
    with _working(as_json):
        from dist_sft.cluster.jobs import jobs_at

        found = jobs_at(address).get(job_id)
    if as_json:
        _print_json(found.as_dict())
    else:
        print(f"{found.id}  {found.status}  {found.reason}")


@job.command(
    epilog="Examples: `dist-sft job logs gsm8k-1 --address http://HEAD:8265`, `dist-sft job logs gsm8k-1 --follow`"
)
def logs(
    job_id: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="to the job's end, and exit with its result")] = False,
    patience: Patience = 600,
    as_json: AsJson = False,
) -> None:
    """Show what a job has written; with --follow also what it will write."""
    with _working(as_json):
        from dist_sft.cluster.jobs import jobs_at

        jobs = jobs_at(address)
    if follow:
        _follow(jobs, job_id, patience, as_json)
    elif as_json:
        _print_json({"id": job_id, "log": jobs.log(job_id)})
    else:
        print(jobs.log(job_id), end="")


@job.command(epilog="Example: `dist-sft job stop gsm8k-1 --address http://HEAD:8265`")
def stop(job_id: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a job, and wait until it has ended. Its newest whole checkpoint stays."""
    with _working(as_json):
        from dist_sft.cluster.follow import stop as stop_job
        from dist_sft.cluster.jobs import jobs_at

        ended = stop_job(jobs_at(address), job_id)
    if as_json:
        _print_json(ended.as_dict())
    else:
        print(f"{ended.id}  {ended.status}")


def _follow(jobs: "Jobs", job_id: str, patience: float, as_json: bool) -> None:
    """Show a job's log, on standard error where --json asks for its result; exit with its result."""
    from dist_sft.cluster.follow import LogFollower, how_to_go_on

    out = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        print(text, end="", file=out, flush=True)

    try:
        ended = LogFollower(jobs, job_id, write, lambda text: _say(text, "yellow"), patience).follow()
    except KeyboardInterrupt:
        _say(f"no longer following; job {job_id} goes on\n{how_to_go_on(job_id, jobs.address)}", "yellow")
        raise
    if as_json:
        _print_json(ended.as_dict())
    _say(f"job {job_id}: {ended.status}, {ended.reason}", "red" if ended.code else "green")
    raise typer.Exit(ended.code)


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
    epilog="Examples: `dist-sft rayjob run.yaml kubernetes.image=registry.example.com/dist-sft:0.1.0 > job.yaml`, "
    "`dist-sft rayjob run.yaml kubernetes.queue=research --json`, `dist-sft rayjob run.yaml | kubectl apply -f -`"
)
def rayjob(
    run_file: RunFile,
    overrides: Overrides = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="a RayCluster that stays, and takes runs later")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the Kubernetes objects of a run, for KubeRay: run file, disruption budgets, RayJob. Contacts nobody."""
    config = load_config(run_file, overrides or [])
    with _working(as_json):
        from dist_sft.cluster.kubernetes.manifest import render, render_cluster
        from dist_sft.cluster.kubernetes.text import as_documents, as_list

        objects = render_cluster(config) if cluster else render(config)
    if as_json:
        _print_json(as_list(objects))
    else:
        print(as_documents(objects), end="")


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
