"""A run touches nothing in its folder that is not its own: whatever lies there, and however the run ends."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from dist_sft.checkpoint.layout import whole_steps
from dist_sft.commands.export import export
from dist_sft.core.errors import CheckpointError, ConfigError, StorageError
from dist_sft.core.ownership import MARK, scratch
from dist_sft.run import folder as run_folder
from dist_sft.run.opened import open_run
from tests import command
from tests.ranks import local_ranks, losses, train_on_ranks

OURS = (
    "run.json", "run.yaml", "resolved.yaml", "metrics.jsonl", "ledger.jsonl", "session", ".lock", "tokenizer/a.json",
    "checkpoints/x", "checkpoints/step_00000002/manifest.json", "stacks/rank0.txt", "wandb/run_id",
)  # fmt: skip
"""Files under the names that a run writes to."""
THEIRS = (
    "ray/notes.txt", "export.partial/weights.bin", "cache/tokens/x.tokens", "lost+found/x", ".snapshot/x", "data/a.txt",
    "run.yaml.partial", ".export.partial", "tokenizer.json", "step_00000001/manifest.json", "model.safetensors",
    "my run.yaml", "resolved.yml", ".preflight/mine", "notes.txt", "train.py",
)  # fmt: skip
"""Files that stand in nobody's way."""


def put(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"mine: {name}\n".encode() * 3)
        os.utime(path, (1e9, 1e9))
    (folder / "linked").symlink_to("notes.txt")


def content(folder):
    """What a folder of somebody holds, with dates; of folders of ours nothing."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def settings(tiny_run, folder, **run):
    return tiny_run | {
        "run": {"name": "mine", "dir": str(folder), "seed": 5},
        "train": tiny_run["train"] | {"steps": 4, "samples_per_step": 4},
        "checkpoint": {"every": 1, "keep": 1},
        "tracking": {"wandb": {"project": "x", "mode": "offline"}},
        **run,
    }


@pytest.mark.parametrize("name", OURS)
def test_a_file_under_a_name_of_ours_is_refused_and_both_ways_out_are_named(tiny_run, tmp_path, refused, name):
    folder = tmp_path / "home"
    put(folder, THEIRS)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    before = content(folder)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(tiny_run, folder)))
    top = name.partition("/")[0]
    for verb in ("check", "train"):
        assert refused(verb, file) == (
            f"{folder}: {top} is there already, and not of this run, which would overwrite it\n"
            "  fix: set run.dir to another folder, or move what is there"
        )
    assert content(folder) == before and not (folder / MARK).exists()


def test_what_a_run_does_not_write_is_in_nobodys_way(tiny_run, tmp_path):
    put(tmp_path, ("wandb/mine", "checkpoints/mine"))
    quiet = open_run(settings(tiny_run, tmp_path, tracking={}, checkpoint={"url": f"file://{tmp_path}/elsewhere"}))
    run_folder.refuse_collisions(tmp_path, quiet.config, None)
    loud = open_run(settings(tiny_run, tmp_path))
    with pytest.raises(StorageError, match="checkpoints, wandb are there already"):
        run_folder.refuse_collisions(tmp_path, loud.config, None)


def test_the_run_file_may_lie_in_the_run_folder_and_stays_as_it_is(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"# mine\n{yaml.safe_dump(settings(tiny_run, '.'))}"
    (tmp_path / "run.yaml").write_text(text)
    run = open_run("run.yaml")
    assert run_folder.kept_text(run) is None
    run_folder.begin(run.folder, run.config, None)
    run_folder.prepare(run.folder, {"learned": {}}, run.config, None)
    assert (tmp_path / "run.yaml").read_text() == text and (tmp_path / "resolved.yaml").exists()
    (tmp_path / "other.yaml").write_text(text + "# other\n")
    other = open_run("other.yaml")
    with pytest.raises(StorageError, match="not the copy of a run file") as error:
        run_folder.refuse_collisions(other.folder, other.config, run_folder.kept_text(other))
    assert "run.dir" in error.value.fix and "move" in error.value.fix
    with pytest.raises(StorageError):
        run_folder.prepare(other.folder, {"learned": {}}, other.config, run_folder.kept_text(other))
    assert (tmp_path / "run.yaml").read_text() == text


def test_a_copy_is_replaced_by_the_next_one_and_never_what_somebody_made_of_it(tiny_run, tmp_path):
    folder, file = tmp_path / "run", tmp_path / "my.yaml"
    base = yaml.safe_dump(settings(tiny_run, folder))
    for number in range(3):
        file.write_text(f"# version {number}\n{base}")
        run = open_run(file)
        run_folder.prepare(folder, {"learned": {}}, run.config, run_folder.kept_text(run))
        assert (folder / "run.yaml").read_bytes() == file.read_bytes()
    (folder / "run.yaml").write_text("# edited\n")
    with pytest.raises(StorageError, match="not the copy"):
        run_folder.prepare(folder, {"learned": {}}, run.config, run_folder.kept_text(run))
    assert (folder / "run.yaml").read_text() == "# edited\n"
    (folder / "run.yaml").write_text(f"# edited\n{base}")
    assert run_folder.kept_text(open_run(folder / "run.yaml")) is None, "it is the run file itself"


@pytest.fixture
def earlier(tmp_path):
    """A run folder of a version that left no marks: its run.yaml holds all settings."""
    folder = tmp_path / "run"
    shutil.copytree(Path(__file__).parents[1] / "checkpoint" / "kept" / "run", folder)
    for path in (folder / "run.yaml", folder / "run.json"):
        path.write_text(path.read_text().replace("KEPT", str(tmp_path)))
    return folder


def test_a_folder_of_an_earlier_version_is_known_read_and_gone_on_with(earlier, tmp_path):
    before, facts = (earlier / "run.yaml").read_text(), run_folder.read_facts(earlier)
    config = run_folder.read_config(earlier)
    file = tmp_path / "my.yaml"
    file.write_text(f"# mine\n{before}")
    run = open_run(file)
    run_folder.refuse_collisions(earlier, run.config, run_folder.kept_text(run))
    assert not (earlier / MARK).exists(), "a look changes nothing"
    run_folder.prepare(earlier, facts, run.config, run_folder.kept_text(run))
    assert (earlier / "run.yaml").read_text() == file.read_text() and (earlier / "resolved.yaml").exists()
    assert all((earlier / name / MARK).exists() for name in (".", "checkpoints", "tokenizer"))
    assert run_folder.read_config(earlier).train == config.train


def test_of_a_folder_of_an_earlier_version_what_somebody_has_written_stays(earlier, tmp_path):
    (earlier / "run.yaml").write_text("# edited\n" + (earlier / "run.yaml").read_text())
    file = tmp_path / "my.yaml"
    file.write_text((earlier / "run.yaml").read_text() + "# mine\n")
    run = open_run(file)
    with pytest.raises(StorageError, match="not the copy of a run file"):
        run_folder.prepare(earlier, run_folder.read_facts(earlier), run.config, run_folder.kept_text(run))
    assert (earlier / "run.yaml").read_text().startswith("# edited\n")
    (earlier / "run.json").write_text("{")
    assert run_folder.read_config(earlier).run.name == run.config.run.name, "run.yaml holds it, too"


def test_every_reader_uses_what_was_resolved(tiny_run, tmp_path):
    run = open_run(settings(tiny_run, tmp_path))
    run_folder.prepare(tmp_path, {"learned": {}, "config": {"model": {"path": "other"}}}, run.config)
    assert not (tmp_path / "run.yaml").exists(), "there was no file"
    assert run_folder.read_config(tmp_path) == run.config
    (tmp_path / "resolved.yaml").write_text((tmp_path / "resolved.yaml").read_text()[:200])
    (tmp_path / "run.json").write_text(json.dumps({"config": run.config.model_dump(mode="json")}))
    assert run_folder.read_config(tmp_path) == run.config


def test_a_secret_is_in_no_file_of_a_run(tiny_run, tmp_path):
    file, folder = tmp_path / "my.yaml", tmp_path / "run"
    url = "s3://me:hunter22@bucket/rows.jsonl"
    file.write_text(yaml.safe_dump(settings(tiny_run, folder, data={"sources": [url], "context_length": 256})))
    run = open_run(file)
    run_folder.prepare(folder, run_folder.facts(run, {}, []), run.config, run_folder.kept_text(run))
    assert run_folder.read_config(folder).data.sources[0].path == "s3://***@bucket/rows.jsonl"
    for path in folder.iterdir():
        assert "hunter22" not in path.read_text() and (path.name == MARK or "bucket/rows.jsonl" in path.read_text())
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.path is hidden"):
        open_run(folder / "resolved.yaml")


def test_a_scratch_folder_goes_with_its_process_and_never_while_that_lives(tmp_path):
    put(tmp_path, [".out.dist-sft-mine/x"])
    code = (
        "import sys, time; from pathlib import Path; from dist_sft.core.ownership import scratch\n"
        "with scratch(Path(sys.argv[1]), 'out') as folder:\n"
        "    (folder / 'x').touch(); print(folder, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        left = Path(other.stdout.readline().strip())
        with scratch(tmp_path, "out"):
            assert (left / "x").exists()
        other.kill()
        other.wait()
    assert (left / "x").exists()
    with scratch(tmp_path, "out") as mine:
        assert mine.is_dir() and not left.exists()
    assert not mine.exists() and (tmp_path / ".out.dist-sft-mine" / "x").exists()


WAYS = ("train", "fail", "kill")
SCHEDULES = [*itertools.product(WAYS, repeat=1), *itertools.product(WAYS, repeat=2)]
"""What is done with a run, one after the other: twelve of them."""


def after(way, tiny_run, folder):
    """Settings of a run that ends in a way."""
    wanted = settings(tiny_run, folder, tracking={})
    return wanted | ({"checkpoint": {"url": "memory://nowhere"}} if way == "fail" else {})


def kill_in_a_save(run, folder):
    """SIGKILL when the first file of a checkpoint is there, or at the end."""
    folder.mkdir()
    spec = {"runs": [run], "store": str(folder / "store"), "out": str(folder / "out")}
    before = set(Path(run["run"]["dir"]).glob("checkpoints/step_*/*/*"))
    local_ranks().start("tests.ranks", spec, 1, folder)
    deadline = time.monotonic() + 60
    while not set(Path(run["run"]["dir"]).glob("checkpoints/step_*/*/*")) - before and time.monotonic() < deadline:
        if (folder / "out").exists():
            break
        time.sleep(0.002)
    local_ranks().kill()
    local_ranks().wait(60)


@pytest.mark.xdist_group("ownership")
def test_not_a_byte_of_somebody_else_changes_in_twelve_schedules(tiny_run, tmp_path):
    """Each trains, fails and is killed in some order, in a folder full of files, and is exported into it."""
    chosen = dict(zip([tmp_path / str(i) for i in range(12)], SCHEDULES, strict=True))
    for folder in chosen:
        put(folder, THEIRS)
    before = {folder: content(folder) for folder in chosen}
    for turn in range(2):
        ways = {folder: ways[turn] for folder, ways in chosen.items() if turn < len(ways)}
        together = {folder: after(way, tiny_run, folder) for folder, way in ways.items() if way != "kill"}
        ended = dict(zip(together, train_on_ranks(list(together.values()), 1, check=False), strict=True))
        for folder, way in ways.items():
            if way == "kill":
                kill_in_a_save(after(way, tiny_run, folder), tmp_path / f"start{turn}-{folder.name}")
            else:
                assert (ended[folder] is None) == (way == "train"), ended[folder]
            assert content(folder).items() >= before[folder].items(), (chosen[folder], turn)
    trained = [folder for folder in chosen if whole_steps(folder / "checkpoints")]
    whole = [folder for folder, ways in chosen.items() if "train" in ways]
    assert len(whole) == 6 and set(whole) <= set(trained) and {len(losses(folder)) for folder in whole} == {4}
    for folder in trained:
        assert (export(folder, folder / "export") / "model.safetensors").exists()
        with pytest.raises(CheckpointError, match="is there already"):
            export(folder, folder / "data")
        assert content(folder).items() >= before[folder].items()
        assert not list(folder.glob(".export.dist-sft-*")), "nothing of ours is left"


def kill_everything(driver):
    family = [driver, *psutil.Process(driver.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(12))
def test_nor_does_it_with_the_whole_command_killed_at_random(tiny_run, tmp_path, monkeypatch, seed):
    """`dist-sft train` with `run.dir: .` and the run file beside all else."""
    dice, home = random.Random(seed), tmp_path / "home"
    put(home, THEIRS)
    wanted = settings(tiny_run, ".", train=tiny_run["train"] | {"steps": 30, "samples_per_step": 4})
    (home / "run.yaml").write_text("# mine\n" + yaml.safe_dump(wanted))
    before = content(home)
    for end in dice.choices(["kill", "interrupt", "fail"], k=2):
        with (tmp_path / "log").open("w+") as log:
            more = ["train.steps=1000000", "checkpoint.url=memory://x"] if end == "fail" else []
            driver = subprocess.Popen(
                [command.DIST_SFT, "train", "run.yaml", *more], cwd=home, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(dice.uniform(5, 60))
            if driver.poll() is None and end == "kill":
                kill_everything(driver)
            elif driver.poll() is None:
                os.killpg(driver.pid, signal.SIGINT)
            driver.wait(120)
        assert content(home).items() >= before.items(), (seed, end)
    monkeypatch.chdir(home)
    done = subprocess.run([command.DIST_SFT, "train", "run.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert export(home, home / "export").is_dir() and content(home).items() >= before.items()
    left = {path.name for path in home.iterdir()} - {Path(name).parts[0] for name in before} - run_folder.NAMES
    assert left == {MARK, "checkpoints", "wandb", "export"}, "what was killed has left nothing else"
