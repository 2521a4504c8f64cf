"""The rehearsal of `check`: it holds for a sound run, and finds what would make ranks or packs learn otherwise."""

import json
import math
import os
from pathlib import Path

import pytest

from dist_sft.commands.rehearsal import rehearse
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import SftError
from dist_sft.proofs.proof import refuse
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run
from tests.mutants import UPDATES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("rehearsal")

MUTANTS = {
    "each rank divides by its own weights": """
from dist_sft.train import loss
exact = loss.step_loss
loss.step_loss = lambda losses, weights, step_weight, world: exact(losses, weights, float(weights.sum()) or 1.0, 1)
""",
    "all gradients of a step but the last pack's are lost": """
from deepspeed.runtime.engine import DeepSpeedEngine
backward = DeepSpeedEngine.backward
def lost(self, loss, **more):
    return backward(self, loss if self.is_gradient_accumulation_boundary() else 0 * loss, **more)
DeepSpeedEngine.backward = lost
""",
    "samples of a pack see each other": """
from dist_sft.model.context import PackContext
enter = PackContext.enter
def leak(self, *rest):
    enter(self, *rest)
    self.ends = [0, self.ends[-1]]
PackContext.enter = leak
""",
    "a checkpoint comes back with other weights": """
from dist_sft.checkpoint.store import CheckpointStore
load = CheckpointStore.load
def damaged(self, engine):
    progress = load(self, engine)
    if progress.step:
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                parameter.ds_tensor.data.mul_(1.01)
    return progress
CheckpointStore.load = damaged
""",
}


KEPT = [fault.__name__ for fault in UPDATES if fault.__name__ != "no_loss_weights"]
"""Faults that make ranks, packs or micro-steps matter; without weights, each of a rehearsal's runs learns the same."""
IN_SHORT = ("mean_of_packs",)
TRAINERS = {
    name: f"""
from tests.mutants import mutated
fault = mutated({name!r})
fault.__enter__()
"""
    for name in KEPT
}


@pytest.fixture
def run(tiny_run):
    """LoRA with noise and dropout under ZeRO-3, as a run file would ask for it."""
    tuning = {"kind": "lora", "rank": 4, "dropout": 0.1}
    deepspeed = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    model = tiny_run["model"] | {"neftune": {"alpha": 5}, "tuning": tuning}
    return RunConfig.model_validate(
        tiny_run | {"model": model, "deepspeed": deepspeed, "cluster": {"workers": 2, "gpus_per_worker": 0}}
    )


def proofs_of(config, rows_of=None):
    """rows_of: settings that the tiny model's rows are read with; the same unless they are given."""
    data = RunData.of(open_run(rows_of or config))
    looked = data.train.rows.probe(data.train.steps)
    return rehearse(open_run(config), looked.samples, data.encoder.template)


def test_a_sound_run_is_proved(run, tiny_rows, tmp_path):
    """Its held-out rows, which a rehearsal leaves out, are the only ones with the column that it groups by."""
    tagged = (json.dumps(json.loads(line) | {"tag": "chat"}) for line in tiny_rows.read_text().splitlines())
    (tmp_path / "tagged.jsonl").write_text("\n".join(tagged))
    values = run.model_dump(mode="json", exclude_unset=True)
    values |= {"eval": {"source": {"path": str(tmp_path / "tagged.jsonl")}}, "tracking": {"group_by": "tag"}}
    proofs = proofs_of(RunConfig.model_validate(values))
    refuse(proofs)
    assert [proof.holds for proof in proofs] == [True] * 3, proofs
    assert "2 ranks, 2 micro-steps, ZeRO-3" in proofs[0].detail and proofs[2].figure == 0


LONG = ("all gradients of a step but the last pack's are lost", "samples of a pack see each other")
"""These faults are found by tests/parity/test_mutants.py and tests/proofs/test_isolation.py, too."""


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.soak] * (each in LONG)) for each in MUTANTS])
def test_a_run_that_would_learn_otherwise_is_refused(run, name, tmp_path, monkeypatch):
    """The mutant is loaded as the interpreter starts that the ranks are forked from."""
    (tmp_path / "sitecustomize.py").write_text(MUTANTS[name])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    proofs = proofs_of(run)
    with pytest.raises(SftError, match="this does not hold"):
        refuse(proofs)
    failed = [proof.name for proof in proofs if proof.holds is False]
    assert margin(proofs) >= 10
    assert any(each.startswith("resumed" if "checkpoint" in name else "ranks, ZeRO and packing") for each in failed)


def margin(proofs):
    """By how many times the figure that is furthest off exceeds its limit."""
    failed = [proof for proof in proofs if proof.holds is False and proof.figure is not None]
    return max(proof.figure / proof.limit if proof.limit else math.inf for proof in failed)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.soak] * (each not in IN_SHORT)) for each in KEPT]
)
def test_a_trainers_old_mistake_is_ten_times_what_is_rounding_or_more(run, name, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(TRAINERS[name])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    proofs = proofs_of(run)
    print({proof.name: (proof.figure, proof.limit) for proof in proofs})
    assert margin(proofs) >= 10


def test_what_the_run_decides_for_gpus_is_decided_anew(run):
    """Precision and batch sizes that the DeepSpeed JSON repeats, and hpZ of more ranks than there are here."""
    zero = {"stage": 3, "zero_hpz_partition_size": 8, "overlap_comm": True}
    written = {"bf16": {"enabled": True}, "train_batch_size": 64, "data_types": {"grad_accum_dtype": "bf16"}}
    model = run.model.model_copy(update={"dtype": "bfloat16"})
    proofs = proofs_of(run.model_copy(update={"model": model, "deepspeed": {"zero_optimization": zero, **written}}))
    refuse(proofs)
    assert [proof.holds for proof in proofs] == [True] * 3, proofs


def test_what_a_small_copy_on_a_cpu_cannot_have_is_replaced_and_said(run):
    """Eight ranks that share its four heads, 8-bit AdamW; and a warm-up in which nothing would be learned."""
    optimizer = run.train.optimizer.model_copy(update={"name": "adamw8bit"})
    train = run.train.model_copy(
        update={"sequence_parallel": 8, "optimizer": optimizer, "warmup": 100.0, "steps": 1000}
    )
    cluster = run.cluster.model_copy(update={"workers": (8, 8), "gpus_per_worker": 1})
    proofs = proofs_of(run.model_copy(update={"train": train, "cluster": cluster}), run)
    refuse(proofs)
    assert [proof.holds for proof in proofs] == [True] * 3, proofs
    assert "sequence_parallel 4 in place of 8, adamw in place of adamw8bit" in proofs[0].detail


def test_settings_that_cannot_run_on_a_cpu_are_not_rehearsed_and_say_so(run):
    zero = {"stage": 3, "zero_quantized_weights": True}
    proofs = proofs_of(run.model_copy(update={"deepspeed": {"zero_optimization": zero}}))
    refuse(proofs)
    assert [proof.holds for proof in proofs] == [None, None]
    assert "ZeRO++ quantisation does not work on CPU" in proofs[0].detail
