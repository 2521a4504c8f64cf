"""Run `run.assembly.work` on real gloo ranks without Ray: several runs after one start-up.

All worlds of a session are forked from one process, see dist_sft/run/rank_server.py.
"""

import atexit
import contextlib
import functools
import hashlib
import itertools
import json
import os
import time
import traceback
from pathlib import Path

from dist_sft.run.local_ranks import LocalRanks

ROOT = Path(__file__).parents[1]


@functools.cache
def local_ranks():
    """The process that this session's ranks are forked from."""
    ranks = LocalRanks(ROOT)
    atexit.register(ranks.close)
    return ranks


def train_on_ranks(runs, world, timeout=400, check=True):
    """Run each of the settings (RunConfig as JSON values) in turn on `world` ranks.

    Settings with a "probe" {"tokens", "out"} do not train, but write the logits of the engine as it was resumed.
    Settings with "record": FOLDER let each rank write there what noise it drew.
    Settings with "learned": FOLDER let each rank write there which rows each of its updates learned from.
    Settings with "frozen" write the parameters that were not trained, as they are in memory after training.
    Settings with "decomposes": False end with an AssertionError if an adapter's start is computed, not read.
    Those with a "mutant" have that fault, and rows of "silent" have no loss weight, see tests/mutants.py.

    Returns, by run, None or the text of the error that it ended with on rank 0.
    """
    errors = local_ranks().run("tests.ranks", {"runs": runs}, world, timeout)
    assert not check or not any(errors), errors
    return errors


def records(run_dir, kind="step"):
    """What the whole lines of metrics.jsonl say, as anybody reads them."""
    path = Path(run_dir) / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def losses(run_dir):
    """Training loss by step."""
    return {record["step"]: record["loss"] for record in records(run_dir)}


def wait_for_step(run_dir, step, process):
    """Until metrics.jsonl has a step, while a process lives."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if max([0, *losses(run_dir)]) >= step:
                return
        except (OSError, ValueError):  # no file yet, or a line that is being written
            pass
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def write_logits(settings, tokens, out):
    """Logits of the engine of a trained run, at every position of one sample, as a .npy file."""
    import numpy as np
    import torch

    from dist_sft.chat.conversation import EncodedSample
    from dist_sft.data.order import SampleId
    from dist_sft.data.pack import build_pack
    from dist_sft.run.assembly import assemble
    from dist_sft.run.opened import open_run

    run = assemble(open_run(settings), "probe").run
    run.model.module.eval()
    sample = EncodedSample(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32))
    with torch.no_grad():
        logits = run.model.logits(
            run.engine, build_pack([SampleId(0, 0, 0)], [sample]), None, torch.arange(len(tokens))
        )
    if int(os.environ["RANK"]) == 0:
        np.save(out, logits.float().numpy())


@contextlib.contextmanager
def recorded_noise(folder, rank):
    """Write FOLDER/RANK.json: a digest of the noise of each sample in each step, by block; noise drawn again agrees."""
    if not folder:
        yield
        return
    import dist_sft.proofs.noise  # noqa: F401  # which draws noise of its own, that is not recorded
    from dist_sft.model import neftune

    digests, draw = {}, neftune.noise

    def drawn(pack, settings, alpha, width, block=0):
        noise = draw(pack, settings, alpha, width, block)
        for start, end in itertools.pairwise(pack.ends):
            if not pack.padding[start]:
                key = f"block {block} step {pack.step} of {pack.steps} sample {int(pack.keys[start])}"
                digest = hashlib.sha256(noise[start:end].numpy().tobytes()).hexdigest()
                assert digests.setdefault(key, digest) == digest, key
        return noise

    with _recorded(neftune, "noise", drawn, digests, Path(folder, f"{rank}.json")):
        yield


@contextlib.contextmanager
def recorded_rows(folder, rank):
    """Write FOLDER/RANK.json: by step, [source, row] of each sample that an update of this rank was made of."""
    if not folder:
        yield
        return
    from dist_sft.train import loop

    rows, update = {}, loop.update

    def updated(engine, model, share, *rest):
        rows[share.step] = [[id_.source, id_.row] for pack in share.packs for id_ in pack.samples]
        return update(engine, model, share, *rest)

    with _recorded(loop, "update", updated, rows, Path(folder, f"{rank}.json")):
        yield


@contextlib.contextmanager
def _recorded(module, name, recording, record, file):
    """With another function in a module, that adds to a record; which is written to the file in the end."""
    replaced = getattr(module, name)
    setattr(module, name, recording)
    try:
        yield
    finally:
        setattr(module, name, replaced)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record))


def train_and_write_frozen(settings, out):
    """Whole frozen parameters of the model that was trained, by name, as torch.save writes them."""
    import deepspeed
    import torch

    from dist_sft.run.assembly import assemble
    from dist_sft.run.opened import open_run
    from dist_sft.train.loop import train

    rank = assemble(open_run(settings), "test")
    train(rank.run, rank.done, rank.state)
    frozen = {name: p for name, p in rank.run.model.module.named_parameters() if not p.requires_grad}
    partitioned = [p for p in frozen.values() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        if int(os.environ["RANK"]) == 0:
            torch.save({name: p.detach().clone() for name, p in frozen.items()}, out)


def refuse_decompositions():
    from dist_sft.model import adapters

    def principal(*_):
        raise AssertionError("this run must not decompose a weight")

    adapters.principal = principal


def main(spec):
    import torch.distributed as dist

    from dist_sft.core.errors import SftError
    from dist_sft.run.assembly import work
    from tests.mutants import mutated, silent

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{spec['store']}", rank=rank, world_size=world)
    errors = []
    for settings in spec["runs"]:
        probe, frozen = settings.pop("probe", None), settings.pop("frozen", None)
        record = recorded_noise(settings.pop("record", None), rank)
        learned = recorded_rows(settings.pop("learned", None), rank)
        if not settings.pop("decomposes", True):
            refuse_decompositions()
        try:
            if frozen:
                train_and_write_frozen(settings, frozen)
            elif probe:
                write_logits(settings, probe["tokens"], probe["out"])
            else:
                with mutated(settings.pop("mutant", None)), silent(settings.pop("silent", ())), record, learned:
                    work(settings, "test")
            errors.append(None)
        except SftError as error:
            traceback.print_exc()
            errors.append(f"{type(error).__name__}: {error}")
        dist.barrier()
    if rank == 0:
        Path(spec["out"]).write_text(json.dumps(errors))
