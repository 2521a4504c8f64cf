"""Fine-tuning, start to end. Read this first.

A step is a set of samples. The service hands this rank its packs of the step, the engine turns them into one update
that equals that of the unpacked batch, and all that must survive a crash is the number of updates done.
"""

from typing import Any, Literal

from dist_sft.train.early_stopping import EarlyStopping
from dist_sft.train.engine import update
from dist_sft.train.parts import Training
from dist_sft.train.schedule import learning_rate
from dist_sft.train.shares import compared


def train(run: Training, done: int, state: dict[str, Any]) -> tuple[int, Literal["finished", "stopped early"]]:
    """Do the updates that are left; returns how many are done then, and why it ended.

    done: updates that the checkpoint holds. state: what it kept besides, {} at the start.
    """
    steps, stopping, stop = len(run.service), EarlyStopping.of(run.config.eval, state), False
    if stopping.exhausted:
        return done, "stopped early"
    run.heartbeat.beat()
    if run.held_out and done == 0:
        run.tracker.evaluation(done, run.evaluate())

    for share in run.clock.waiting_for(compared(run.service.shares(done), run)):
        rate = learning_rate(run.config.train, share.step, steps)
        measured = update(run.engine, run.model, share, rate, run.config.train, run.groups)
        done = share.step + 1
        run.tracker.step(run.clock.result(share, measured, rate))

        judged = None
        if run.held_out and (done % run.config.eval.every == 0 or done == steps):
            held_out = run.evaluate()
            run.tracker.evaluation(done, held_out)
            judged = held_out.loss_of(run.config.eval.decides)
            stop = stopping.should_stop(judged)
        urgent = run.heartbeat.step(done)
        if stop or urgent or done == steps or done % run.config.checkpoint.every == 0:
            run.heartbeat.rest()
            run.checkpoints.save(run.engine, done, stopping.state, judged)
            if urgent:
                run.checkpoints.finish()
            run.heartbeat.beat()
        if stop:
            break
    run.heartbeat.rest()
    run.checkpoints.finish()
    return done, "stopped early" if stop else "finished"
