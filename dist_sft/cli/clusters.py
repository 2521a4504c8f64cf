"""plan, preflight, submit, job, rayjob: a run on a cluster, from outside it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dist_sft.cli.app import (
    Address,
    AsJson,
    JobId,
    Overrides,
    Patience,
    RunFile,
    Secrets,
    app,
    job,
    print_json,
    say,
    told,
    working,
)
from dist_sft.core.terminal import Terminal
from dist_sft.run.opened import open_run

if TYPE_CHECKING:
    from dist_sft.remote.jobs import Jobs


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.cli.show.plan import show
        from dist_sft.commands.planning import plan_run
        from dist_sft.commands.planning.machine import Machine

        machine = Machine.of(nodes, gpus or max(1, run.config.cluster.most // nodes), gpu, gpu_memory, mfu)
        planned = plan_run(run, machine, rows)
    if as_json:
        print_json(planned.as_dict())
    else:
        show(planned.plan, planned.changes, Terminal())
        for note in planned.notes:
            say(f"warning: {note}", "yellow")
    planned.refuse()


@app.command(
    epilog="Examples: `dist-sft preflight run.yaml cluster.address=auto`, "
    "`RAY_ADDRESS=10.0.0.5:6379 dist-sft preflight run.yaml --json`"
)
def preflight(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look at every node of the Ray cluster that could hold workers: one storage for all, versions, clocks, disk,
    shared memory, GPUs, open files, ports, bandwidth of an all-reduce between nodes. `train` does most of it, too."""
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.cli.show.preflight import show
        from dist_sft.commands.preflight import look_at_cluster

        report = look_at_cluster(run)
    if as_json:
        print_json(report.as_dict())
    else:
        show(report, Terminal())
    report.refuse()
    if not as_json:
        print("ok")


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.commands import submit as commands
        from dist_sft.remote.follow import how_to_go_on
        from dist_sft.remote.jobs import jobs_at
        from dist_sft.remote.package import megabytes

        submission = commands.prepare(
            run_file, run, overrides or [], include=include or [], secrets=secret or [], runtime_env=runtime_env
        )
        files = submission.package
        say("\n".join([f"to be uploaded, {megabytes(files.size)}:", *files.listing]), "green")
        jobs = jobs_at(address)
        job_id = commands.submit(jobs, submission)
    say(f"job {job_id}: {len(files.files)} files, {megabytes(files.size)}: {submission.command}", "green")
    if wait:
        _follow(jobs, job_id, patience, as_json)
    elif as_json:
        print_json(jobs.get(job_id).as_dict())
    else:
        say(how_to_go_on(job_id, jobs.address), "green")
        print(job_id)


@job.command(epilog="Example: `dist-sft job status gsm8k-1 --address http://HEAD:8265 --json`")
def status(job_id: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a job is. Exit code 0 whatever it is: --json has the job's own."""
    with working(as_json):
        from dist_sft.remote.jobs import jobs_at

        found = jobs_at(address).get(job_id)
    if as_json:
        print_json(found.as_dict())
    else:
        print(told(f"{found.id}  {found.status}  {found.reason}"))


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
    with working(as_json):
        from dist_sft.remote.jobs import jobs_at

        jobs = jobs_at(address)
    if follow:
        _follow(jobs, job_id, patience, as_json)
    elif as_json:
        print_json({"id": job_id, "log": jobs.log(job_id)})
    else:
        print(told(jobs.log(job_id)), end="")


@job.command(epilog="Example: `dist-sft job stop gsm8k-1 --address http://HEAD:8265`")
def stop(job_id: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a job, and wait until it has ended. Its newest whole checkpoint stays."""
    with working(as_json):
        from dist_sft.remote.follow import stop as stop_job
        from dist_sft.remote.jobs import jobs_at

        ended = stop_job(jobs_at(address), job_id)
    if as_json:
        print_json(ended.as_dict())
    else:
        print(f"{ended.id}  {ended.status}")


def _follow(jobs: "Jobs", job_id: str, patience: float, as_json: bool) -> None:
    """Show a job's log, on standard error where --json asks for its result; exit with its result."""
    from dist_sft.remote.follow import LogFollower, how_to_go_on

    out = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        print(told(text), end="", file=out, flush=True)

    try:
        ended = LogFollower(jobs, job_id, write, lambda text: say(text, "yellow"), patience).follow()
    except KeyboardInterrupt:
        say(f"no longer following; job {job_id} goes on\n{how_to_go_on(job_id, jobs.address)}", "yellow")
        raise
    if as_json:
        print_json(ended.as_dict())
    say(f"job {job_id}: {ended.status}, {ended.reason}", "red" if ended.code else "green")
    raise typer.Exit(ended.code)


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
    run = open_run(run_file, overrides or [])
    with working(as_json):
        from dist_sft.commands.rayjob import short_of_memory
        from dist_sft.kubernetes.manifest import render, render_cluster
        from dist_sft.kubernetes.text import as_documents, as_list

        objects = render_cluster(run) if cluster else render(run)
        if warning := short_of_memory(run):
            say(f"warning: {warning}", "yellow")
    if as_json:
        print_json(as_list(objects))
    else:
        print(as_documents(objects), end="")
