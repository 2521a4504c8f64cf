"""What the user must mend ends the run at once; what a new start can mend does not."""

import errno
import os
import pickle

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from dist_sft.cluster.failures import EndOnErrors, as_sft_error
from dist_sft.cluster.runner import _stepped
from dist_sft.core.errors import CheckpointError, ClusterError, RowError, StorageError, TrainingError
from dist_sft.core.files import reading, writing

FINAL = [TrainingError("the loss is nan"), CheckpointError("full"), RowError("bad", reason="bad_json")]


def raised(error):
    return UserExceptionWithTraceback(error, "Traceback ...")


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_an_error_that_would_come_again_ends_the_run(error):
    with pytest.raises(type(error), match=error.what):
        EndOnErrors().after_exception(None, {0: raised(RuntimeError("gloo")), 1: raised(error)})


@pytest.mark.parametrize(
    "failures",
    [
        {0: raised(RuntimeError("Connection closed by peer"))},
        {0: raised(ClusterError("a later start has taken over"))},
        {0: ActorDiedError(), 1: raised(CheckpointError("rank 0 cannot be heard"))},
    ],
    ids=["collective", "cluster", "death"],
)
def test_a_fault_of_the_cluster_does_not(failures):
    EndOnErrors().after_exception(None, failures)


def storage_fails(doing, folder, name):
    """What rank 0 is known to have raised, after its way through Ray."""
    with pytest.raises(StorageError) as caught, doing(folder):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    return {0: raised(pickle.loads(pickle.dumps(caught.value)))}


@pytest.mark.parametrize("doing", [reading, writing])
@pytest.mark.parametrize("name", ["ESTALE", "EIO", "ETIMEDOUT", "ENOTCONN", "EBUSY"])
def test_storage_that_may_come_back_does_not_end_the_run(tmp_path, doing, name):
    EndOnErrors().after_exception(None, storage_fails(doing, tmp_path, name))


@pytest.mark.parametrize("doing", [reading, writing])
@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM"])
def test_storage_that_somebody_must_mend_ends_the_run(tmp_path, doing, name):
    with pytest.raises(StorageError, match=os.strerror(getattr(errno, name))):
        EndOnErrors().after_exception(None, storage_fails(doing, tmp_path, name))


def test_the_users_error_is_found_in_what_ray_wraps_around_it():
    error = TrainingError("the loss is nan")
    assert as_sft_error(ControllerError(error)) is error
    assert as_sft_error(WorkerGroupError("failed", {1: raised(error)})) is error
    lost = as_sft_error(WorkerGroupError("rank 1 died", {1: ActorDiedError()}))
    assert isinstance(lost, ClusterError) and "run the same command again" in lost.fix


@pytest.mark.parametrize(
    "error", [KeyError("wpe"), IndexError("index out of range"), RuntimeError("CUDA out of memory")]
)
def test_what_fails_before_the_first_step_is_not_to_be_tried_again(error):
    fix = as_sft_error(WorkerGroupError("failed", {0: raised(error)}), stepped=False).fix
    assert "same command" not in fix and "no step was done since this start" in fix
    assert "same command" in as_sft_error(WorkerGroupError("rank 1 died", {1: ActorDiedError()}), stepped=False).fix
    assert "same command" in as_sft_error(WorkerGroupError("failed", {0: raised(error)}), stepped=True).fix


def test_without_a_record_no_step_was_done(tmp_path):
    assert not _stepped(tmp_path, 50.0)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n')
    assert _stepped(tmp_path, 50.0), "what cannot be read says nothing of the fault"
