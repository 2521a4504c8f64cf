"""What a checkpoint on its way leaves behind: nothing, until it is whole."""

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dist_sft.checkpoint import layout, writing
from dist_sft.checkpoint.layout import WRITER, Manifest, folder_of, whole_steps
from dist_sft.checkpoint.partition import Piece
from dist_sft.checkpoint.shards import Pieces, write_shard
from dist_sft.checkpoint.store import CheckpointStore
from dist_sft.checkpoint.writing import Retention, Writing
from dist_sft.core.errors import CheckpointError, StorageError, StorageOutage
from dist_sft.core.files import sha256, stable_hash


def manifest(step, held_out=None, shards=None, parameters=None):
    return Manifest(step, 2, 3, False, {}, {}, parameters or {}, {}, held_out, shards or {}, {})


def saved(checkpoints, losses):
    for step, loss in losses.items():
        folder_of(checkpoints, step).mkdir(parents=True)
        manifest(step, loss).write(folder_of(checkpoints, step))


@pytest.mark.parametrize(
    ("newest", "best", "kept"),
    [(1, 0, [5]), (2, 0, [4, 5]), (1, 1, [2, 5]), (1, 2, [2, 4, 5]), (2, 1, [2, 4, 5]), (9, 9, [1, 2, 3, 4, 5])],
)
def test_the_newest_and_the_best_are_kept(tmp_path, newest, best, kept):
    saved(tmp_path, {1: 2.0, 2: 1.0, 3: None, 4: 1.5, 5: 3.0})
    surplus = Retention(newest, best).surplus(tmp_path)
    assert [step for step in whole_steps(tmp_path) if folder_of(tmp_path, step) not in surplus] == kept


def test_of_equal_ones_the_newer_is_the_best(tmp_path):
    saved(tmp_path, {1: 1.0, 2: 1.0, 3: 2.0})
    assert Retention(1, 1).surplus(tmp_path) == [folder_of(tmp_path, 1)]


def test_of_those_put_aside_the_newest_is_kept(tmp_path):
    saved(tmp_path, {7: None})
    for step in (2, 9, 10):
        (tmp_path / f"step_{step:08d}.bad").mkdir()
    assert [path.name for path in Retention(1).surplus(tmp_path)] == ["step_00000002.bad", "step_00000009.bad"]


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path):
    (tmp_path / "c").symlink_to("c")
    with pytest.raises(StorageOutage, match="Too many levels of symbolic links"):
        whole_steps(tmp_path / "c")


def test_the_only_whole_checkpoint_is_never_surplus(tmp_path):
    saved(tmp_path, {7: None})
    (tmp_path / "step_00000008" / "1-a").mkdir(parents=True)
    assert Retention(1).surplus(tmp_path) == []


def test_a_shard_is_what_safetensors_reads(tmp_path):
    tensors = {"weight/a": torch.randn(7), "step/a": torch.tensor([3]), "0/codes": torch.arange(5, dtype=torch.uint8),
               "0/scales": torch.randn(2), "empty": torch.empty(0)}  # fmt: skip
    shard = write_shard(tmp_path / "x" / "a.safetensors", tensors, {"a": (0, 7)}, rank=4)
    assert shard.dtypes == {"weight": ["F32"], "step": ["I64"], "0": ["F32", "U8"], "empty": ["F32"]}
    read = load_file(tmp_path / "x" / "a.safetensors")
    assert set(read) == set(tensors) and all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert (shard.bytes, shard.sha256) == (
        (tmp_path / "x/a.safetensors").stat().st_size,
        sha256(tmp_path / "x/a.safetensors"),
    )


@pytest.fixture
def pieces(tmp_path):
    """Parameter a = 0..9 in three files: [0, 4), [4, 5), [5, 10)."""
    cuts, shards = [(0, 4), (4, 5), (5, 10)], {}
    for rank, (begin, end) in enumerate(cuts):
        tensors = {"weight/a": torch.arange(begin, end).float(), "step/a": torch.tensor([8])}
        shards[f"{rank}.safetensors"] = write_shard(
            tmp_path / f"{rank}.safetensors", tensors, {"a": (begin, end - begin)}, rank
        )
    return Pieces(tmp_path, manifest(1, shards=shards, parameters={"a": (2, 5)}))


def test_no_file_stays_open_after_it_was_read(pieces):
    assert pieces.weight("a").numel() == 10 and pieces.columns
    opened = {os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()}
    assert opened and not opened & {str(path) for path in pieces.folder.iterdir()}


@pytest.mark.parametrize("begin", range(10))
@pytest.mark.parametrize("end", [1, 4, 5, 7, 10])
def test_any_stretch_of_a_parameter_can_be_read_however_it_was_cut(pieces, begin, end):
    into = torch.full((12,), -1.0)
    if begin < end:
        assert pieces.read("weight", Piece("a", begin, end - begin, 2), into)
        assert into.tolist() == [-1.0, -1.0, *range(begin, end), *[-1.0] * (10 - (end - begin))]


def test_a_whole_parameter_has_its_shape_and_a_stretch_that_is_nowhere_is_refused(pieces):
    assert torch.equal(pieces.weight("a"), torch.arange(10).float().view(2, 5))
    assert pieces.steps("a") == {8} and pieces.columns == {"weight"} and not pieces.rounds
    with pytest.raises(CheckpointError, match="numbers 8 to 12, 2 are in it"):
        pieces.read("weight", Piece("a", 8, 4, 0), torch.empty(4))
    with pytest.raises(CheckpointError, match="of weight of b, numbers 0 to 1, 0 are in it"):
        pieces.read("weight", Piece("b", 0, 1, 0), torch.empty(1))
    assert not pieces.read("exp_avg", Piece("a", 0, 3, 0), torch.empty(3))


OTHERS = {2: {"format": 2, "step": 1}, 4: {"sha256": stable_hash({"format": 4}), "format": 4}}


@pytest.mark.parametrize("version", OTHERS)
def test_a_manifest_of_another_version_is_left_alone_and_named(tmp_path, version):
    saved(tmp_path, {1: None})
    path = folder_of(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(OTHERS[version]))
    with pytest.raises(CheckpointError, match=f"format {version} is not known to this version"):
        Manifest.read(folder_of(tmp_path, 1))


@pytest.fixture
def alone(tmp_path):
    """A process group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def begun(folder, attempt="1-a", owner="1-a", step=3):
    """A checkpoint on its way, of parameter a = 0..9."""
    folder.mkdir(exist_ok=True)
    (folder / WRITER).write_text(owner)
    tensors, shape = {"weight/a": torch.arange(10.0)}, {"a": (10,)}
    return Writing(
        folder, attempt, manifest(step, parameters=shape), tensors, {"a": (0, 10)}, {}, Retention(1), time.monotonic()
    )


def test_what_has_been_written_and_committed_is_whole(tmp_path, alone):
    on_its_way = begun(tmp_path / "c")
    assert on_its_way.written() is None and on_its_way.committed() is None
    assert whole_steps(tmp_path / "c") == [3]
    found = Manifest.read(folder_of(tmp_path / "c", 3))
    assert torch.equal(Pieces(folder_of(tmp_path / "c", 3), found).weight("a"), torch.arange(10.0))


def test_a_rank_left_over_from_an_earlier_start_commits_nothing(tmp_path, alone):
    late = begun(tmp_path / "c", attempt="1-a", owner="2-b")
    assert late.written() is None and "another start of this run has taken over: 2-b" in late.committed().what
    assert type(late.committed()) is CheckpointError, "nor does it begin again"
    assert whole_steps(tmp_path / "c") == []


def test_without_the_record_of_every_rank_there_is_no_checkpoint(tmp_path, alone, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)  # the other one never writes
    waiting = begun(tmp_path / "c")
    assert waiting.written() is None
    time.sleep(5 * writing.POLL)
    assert whole_steps(tmp_path / "c") == [] and any(t.name == "checkpoint" for t in threading.enumerate())
    waiting.abandon()
    assert not folder_of(tmp_path / "c", 3).exists()


@pytest.mark.parametrize("removed", [".", "step_00000003/1-a/rank00000.json"])
def test_a_folder_that_is_removed_under_a_save_ends_it(tmp_path, alone, monkeypatch, removed):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)  # the other one has not written yet
    waiting = begun(tmp_path / "c")
    assert waiting.written() is None
    path = tmp_path / "c" / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    waiting._committer.join(20)
    assert not waiting._committer.is_alive() and "somebody has removed what was written" in waiting.committed().what


def test_a_record_that_stays_away_ends_a_save(tmp_path, alone, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(writing, "LATE", 0.5)
    waiting = begun(tmp_path / "c")
    assert waiting.written() is None and "rank00001.json is gone" in waiting.committed().what


def test_what_somebody_else_has_put_into_a_checkpoint_stays(tmp_path, alone):
    for step in (1, 2, 3):
        on_its_way = begun(tmp_path / "c", step=step)
        assert on_its_way.written() is on_its_way.committed() is None
        (folder_of(tmp_path / "c", step) / "notes.txt").write_text("mine")
        (folder_of(tmp_path / "c", step) / "1-a" / "mine.safetensors").write_text("mine")
    folder_of(tmp_path / "c", 3).rename(tmp_path / "c" / "step_00000003.bad")
    for step in (1, 2):
        assert layout.remove(folder_of(tmp_path / "c", step)) is None
    left = sorted(str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("*") if path.is_file())
    assert [name for name in left if name.startswith(("step_00000001", "step_00000002"))] == [
        f"step_0000000{step}/{name}" for step in (1, 2) for name in ("1-a/mine.safetensors", "notes.txt")
    ]


def test_what_has_the_name_of_a_checkpoint_and_is_none_is_refused_and_left(tmp_path):
    layout.claim_checkpoints(tmp_path / "c")
    foreign = {"step_00000004/manifest.json": "mine", "step_00000005": "mine", "step_00000006.bad/manifest.json": "{}"}
    for name, text in foreign.items():
        path = tmp_path / "c" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        with pytest.raises(StorageError, match="has the name of one") as refused:
            layout.claim_checkpoints(tmp_path / "c")
        assert refused.value.where == str(tmp_path / "c" / name.partition("/")[0]) and path.read_text() == text
        path.unlink()
        if path.parent != tmp_path / "c":
            path.parent.rmdir()


def test_a_file_that_arrives_shorter_than_it_was_written_is_not_committed(tmp_path, alone, monkeypatch):
    def shorter(path, *rest, real=writing.write_shard):
        shard = real(path, *rest)
        path.write_bytes(path.read_bytes()[:-1])
        return shard

    monkeypatch.setattr(writing, "write_shard", shorter)
    torn = begun(tmp_path / "c")
    assert torn.written() is None and "bytes here" in torn.committed().what
    assert whole_steps(tmp_path / "c") == []


def test_a_write_that_fails_says_why_and_how_much_room_there_is(tmp_path, alone):
    tmp_path.joinpath("c").mkdir()
    folder_of(tmp_path / "c", 3).write_text("a file in the way")
    failed = begun(tmp_path / "c")
    assert "rank 0: " in failed.written().what and "MiB free in" in failed.written().what
    failed.abandon()
    assert whole_steps(tmp_path / "c") == []


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, StorageOutage), (errno.EROFS, CheckpointError)])
def test_a_write_that_fails_says_whether_that_may_pass(tmp_path, alone, monkeypatch, number, kind):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing, "write_shard", refused)
    failed = begun(tmp_path / "c")
    assert type(failed.written()) is kind and os.strerror(number) in failed.written().what
    failed.abandon()


def test_a_checkpoint_that_cannot_be_read_now_stays_where_it_is(tmp_path, alone, monkeypatch):
    def refused(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert begun(tmp_path / "c").committed() is None
    monkeypatch.setattr(layout, "sha256", refused)
    with pytest.raises(StorageOutage, match=r"rank 0: cannot be read: .*Input/output error"):
        CheckpointStore(tmp_path / "c", Retention(1), adapter=False, attempt="2-a", run={}).load(None)
    assert whole_steps(tmp_path / "c") == [3]
