"""A lock that a killed build left is found at once; one that is held, or may be, is not touched."""

import os
import threading
import time

import pytest
from torch.utils.file_baton import FileBaton

from dist_sft.core.errors import ClusterError
from dist_sft.run.extension_builds import extensions_folder, wait_for_builds


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    path = tmp_path / "extensions" / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir(parents=True)
    return path


def test_no_lock_is_no_reason_to_wait(lock):
    wait_for_builds()
    lock.parent.rmdir()
    wait_for_builds()


def test_a_lock_that_nobody_holds_is_an_error_that_says_which_file_to_remove(lock):
    lock.touch()
    with pytest.raises(ClusterError) as caught:
        wait_for_builds(fresh=0)
    assert str(caught.value) == (
        f"{lock}: a killed build of a DeepSpeed extension has left its lock, and every start would wait for it\n"
        f"  fix: rm {lock}"
    )
    assert lock.exists()


def test_the_lock_of_a_build_that_runs_is_left_alone(lock):
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    wait_for_builds(fresh=0)
    assert lock.exists()
    baton.release()


def test_a_build_is_seen_through_a_cache_folder_that_is_a_link(lock, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(extensions_folder())
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "link"))
    baton = FileBaton(str(tmp_path / "link" / lock.relative_to(tmp_path / "extensions")))
    assert baton.try_acquire()
    wait_for_builds(fresh=0)
    baton.release()
    lock.touch()
    with pytest.raises(ClusterError):
        wait_for_builds(fresh=0)


def test_a_fresh_lock_may_be_of_another_node_and_is_waited_for_with_a_word(lock):
    lock.touch()
    threading.Timer(0.3, lock.unlink).start()
    said, begin = [], time.monotonic()
    wait_for_builds(fresh=300, say=said.append)
    assert time.monotonic() - begin > 0.3
    assert said == [f"waiting for the build that holds {lock}; if none runs, remove it"]


def test_an_old_lock_is_not_waited_for(lock):
    lock.touch()
    os.utime(lock, (time.time() - 301, time.time() - 301))
    with pytest.raises(ClusterError, match="left its lock"):
        wait_for_builds(fresh=300)
