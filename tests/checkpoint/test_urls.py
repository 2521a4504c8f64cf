"""Checkpoints behind a URL, on a real S3 server: what is learned, found and refused is what it is on a disk."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from dist_sft.checkpoint.layout import Manifest, is_whole, newest_in, verify_shard, whole_steps
from dist_sft.commands.export import export
from dist_sft.core.errors import ConfigError, StorageError
from dist_sft.core.storage import remove_tree, storage_path
from tests.ranks import losses, records, train_on_ranks, wait_for_step

STEPS, WORLD, BUCKET = 4, 2, "bucket"
pytestmark = pytest.mark.xdist_group("urls")


class Server:
    """moto's S3, which speaks HTTP."""

    def __init__(self, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "moto.server", "-p", self.address.rpartition(":")[2]]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{self.address}/{BUCKET}", method="PUT"), timeout=5)
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("no server")

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with open(tmp_path_factory.mktemp("s3") / "log", "w") as log:
        started = Server(log)
        yield started
        started.stop()


@pytest.fixture(scope="module")
def s3(server):
    """What the environment says of the server: to this process, and to ranks that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "me")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        S3FileSystem.clear_instance_cache()  # of a server that another module had
        yield f"s3://{BUCKET}"


def settings(tiny_run, folder, url=None, world=WORLD, **checkpoint):
    return tiny_run | {
        "run": {"name": "urls", "dir": str(folder), "seed": 1},
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": 1, "keep": 99, "url": url, **checkpoint},
        "cluster": {"workers": world, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    }


@pytest.fixture(scope="module")
def runs(tiny_run, s3, tmp_path_factory):
    """The folders of two runs that are the same but for where their checkpoints are; and the URL."""
    folder = tmp_path_factory.mktemp("runs")
    train_on_ranks([settings(tiny_run, folder / "disk"), settings(tiny_run, folder / "s3", f"{s3}/run")], WORLD)
    return folder / "disk", folder / "s3", storage_path(f"{s3}/run")


def begun(folder):
    return [record["step"] for record in records(folder, "note") if record["text"] == "start"]


def test_a_run_goes_on_from_a_url_bit_for_bit_also_with_other_ranks_and_without_its_folder(
    tiny_run, runs, s3, tmp_path
):
    disk, folder, url = runs
    assert losses(folder) == losses(disk) and whole_steps(url) == [1, 2, 3, 4]
    assert not (folder / "checkpoints").exists()
    remove_tree(url / "step_00000003")
    remove_tree(url / "step_00000004")
    train_on_ranks([settings(tiny_run, folder, str(url))], WORLD)
    assert begun(folder) == [0, 2] and losses(folder) == losses(disk)

    remove_tree(url / "step_00000004")
    train_on_ranks([settings(tiny_run, tmp_path / "new", str(url), world=1)], 1)
    assert begun(tmp_path / "new") == [3]
    assert losses(tmp_path / "new")[4] == pytest.approx(losses(disk)[4], rel=1e-5)
    assert [Manifest.read(newest_in(url, step)).world for step in whole_steps(url)] == [2, 2, 2, 1]


def test_an_export_reads_from_a_url(runs, tmp_path):
    disk, folder, _ = runs
    found, right = (export(run, tmp_path / run.name, step=2) / "model.safetensors" for run in (folder, disk))
    assert found.read_bytes() == right.read_bytes()


def test_a_flipped_bit_is_found_and_the_checkpoint_before_it_is_used(tiny_run, runs, s3, tmp_path):
    disk, _, _ = runs
    url, folder = storage_path(f"{s3}/flipped"), tmp_path / "run"
    train_on_ranks([settings(tiny_run, folder, str(url), keep=2)], WORLD)
    assert whole_steps(url) == [3, 4], "older ones were removed"
    shard = next(url.glob("step_00000004/*/rank00001.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    train_on_ranks([settings(tiny_run, folder, str(url), keep=2)], WORLD)
    assert begun(folder) == [0, 3] and losses(folder) == losses(disk)
    assert "does not have the content" in (url / "step_00000004.bad" / "reason.txt").read_text()
    assert whole_steps(url) == [3, 4]


def test_another_run_does_not_go_on_from_it(tiny_run, runs, tmp_path):
    others = {what: settings(tiny_run, tmp_path / what, str(runs[2])) for what in ("config", "sources")}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(Path(tiny_run["data"]["sources"][0]["path"]).read_text().replace("What", "Which", 1))
    others["config"]["run"]["seed"] = 2
    others["sources"]["data"] = tiny_run["data"] | {"sources": [{"path": str(rows)}]}
    owner = (runs[2] / "writer").read_text()
    errors = train_on_ranks(list(others.values()), WORLD, check=False)
    for what, error in zip(others, errors, strict=True):
        assert f"the checkpoints there are of another run; not the same: {what}\n" in error
        assert "a checkpoint.url of its own" in error
    assert (runs[2] / "writer").read_text() == owner, "that run goes on undisturbed"


def test_a_run_with_checkpoints_elsewhere_does_not_begin_again(tiny_run, runs, s3):
    disk, before = runs[0], losses(runs[0])
    (error,) = train_on_ranks([settings(tiny_run, disk, f"{s3}/elsewhere")], WORLD, check=False)
    assert error.startswith("ConfigError: checkpoint.url: this run has checkpoints at ") and "copy them there" in error
    assert losses(disk) == before and not whole_steps(storage_path(f"{s3}/elsewhere"))


def test_a_server_that_fails_says_nothing_about_a_checkpoint(runs, monkeypatch):
    """Else a good one would be put aside, or removed."""
    checkpoint = newest_in(runs[2], 2)
    (name, shard), *_ = Manifest.read(checkpoint).shards.items()

    async def refused(*_, **__):
        raise PermissionError("the token has expired")

    monkeypatch.setattr(type(checkpoint.fs), "_call_s3", refused)
    for action in (lambda: verify_shard(checkpoint, name, shard), lambda: is_whole(checkpoint)):
        with pytest.raises(PermissionError):
            action()
    with pytest.raises(StorageError, match="cannot be read"):
        whole_steps(runs[2])


def test_files_that_cannot_be_removed_are_noticed(s3, monkeypatch):
    folder = storage_path(f"{s3}/stays")
    (folder / "a").write_bytes(b"1")

    async def ignored(*_, **__):
        return []

    monkeypatch.setattr(type(folder.fs), "_bulk_delete", ignored)
    with pytest.raises(OSError, match="1 files could not be removed"):
        remove_tree(folder)


def test_storage_that_is_not_there_or_goes_away_ends_the_run_with_the_reason(tiny_run, s3, tmp_path, monkeypatch):
    (error,) = train_on_ranks([settings(tiny_run, tmp_path / "a", "s3://nobody-made-it/x")], WORLD, check=False)
    assert error.startswith("StorageError: s3://nobody-made-it/x: cannot be read: ")
    with open(tmp_path / "log", "w") as log:
        short = Server(log)
        monkeypatch.setenv("AWS_ENDPOINT_URL", short.address)
        run = settings(tiny_run, tmp_path / "b", f"{s3}/b", keep=2)
        run["train"]["steps"] = 2000
        power_cut = threading.Thread(target=lambda: (wait_for_step(tmp_path / "b", 3, short.process), short.stop()))
        power_cut.start()
        (error,) = train_on_ranks([run], WORLD, check=False)
        power_cut.join()
    assert error.startswith("StorageOutage: s3://bucket/b"), "a new start may find it again"
    assert "cannot be written: " in error and "see that the storage works" in error


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://x", "another place in each process"),
        ("nothing://x", r"nothing:// cannot be reached: [\s\S]*install fsspec's library"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(tiny_run, tmp_path, url, said):
    from dist_sft.config.run_config import RunConfig
    from dist_sft.run.folder import checkpoints_of

    config = RunConfig.model_validate(settings(tiny_run, tmp_path, url))
    with pytest.raises(ConfigError, match=said):
        checkpoints_of(config, tmp_path)


def test_credentials_in_a_url_are_refused(tiny_run, tmp_path):
    from dist_sft.config.run_config import RunConfig

    with pytest.raises(ConfigError) as caught:
        RunConfig.model_validate(settings(tiny_run, tmp_path, "s3://me:secret@bucket/x"))
    said = str(caught.value)
    assert "secret" not in said and "not a URL such as s3://bucket/run: no user or password" in said
