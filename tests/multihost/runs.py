"""What a run folder says of a run, and settings that several runs share."""

import pytest

from dist_sft.tracking.records import Start, Step, read

STEPS, EVERY = 40, 5
"""Of a run, and between two of its checkpoints."""
ELASTIC = ("cluster.workers=[1,2]", "cluster.max_failures=5", "cluster.regrow=30")


def learned(run_dir):
    """What each step was (its loss, and how much there was to learn in it), and each row that was left out."""
    return steps(run_dir), sorted((run_dir / "ledger.jsonl").read_text().splitlines())


def steps(run_dir):
    """Loss, tokens and supervised tokens by step."""
    records = read(run_dir / "metrics.jsonl", Step)
    return {record.step: (record.loss, record.tokens, record.supervised) for record in records}


def starts(run_dir):
    """The step after which each start of the ranks went on."""
    return [start.step for start in read(run_dir / "metrics.jsonl", Start)]


def one_wandb_run(run_dir):
    """Whether all starts of the ranks went on with the same run of W&B's, of which each wrote a part."""
    parts = [path.name for path in run_dir.glob("wandb/**/offline-run-*") if path.is_dir()]
    return len(parts) >= len(starts(run_dir)) and len({name.rpartition("-")[2] for name in parts}) == 1


def close(run_dir, expected):
    """The same steps, samples and ledger; losses to 1e-5, for other ranks add in another order."""
    (found, left_out), (right, left_out_there) = learned(run_dir), expected
    assert left_out == left_out_there
    assert {step: counts for step, (_, *counts) in found.items()} == {step: c for step, (_, *c) in right.items()}
    assert [found[step][0] for step in sorted(right)] == pytest.approx([right[s][0] for s in sorted(right)], rel=1e-5)
    return True
