"""`dist-sft train` through a real Ray: errors of workers arrive as themselves, and Ctrl-C ends it cleanly."""

import os
import re
import signal
import statistics

import pytest
import yaml

from dist_sft.checkpoint.layout import Manifest, newest
from tests.command import chat, process, start
from tests.ranks import records, wait_for_step

pytestmark = pytest.mark.xdist_group("ray")
GOODPUT = r"(?m)^goodput: \d+% of the time since the first start went into steps that count$"


def test_an_error_of_a_worker_reaches_the_terminal_as_itself(run):
    (run.model / "model.safetensors").unlink()
    ended = process("train", run.file)
    assert ended.returncode == 1, ended
    assert ended.stderr.startswith(f"error: {run.model}: the folder holds no weights")
    assert ended.stderr.endswith("\n  fix: put model.safetensors or pytorch_model.bin beside its config.json\n")
    assert "Traceback" not in ended.stdout + ended.stderr and "RayTaskError" not in ended.stderr


def test_a_bad_row_stops_the_training_before_it_starts(run, tmp_path):
    run.rows.write_text(chat("user", "gpt") * 60)
    folder = tmp_path / "run"
    settings = yaml.safe_load(run.file.read_text()) | {"cluster": {"workers": 2, "gpus_per_worker": 0,
                                                                   "cpus_per_worker": 0.5}}  # fmt: skip
    run.file.write_text(yaml.safe_dump(settings))
    ended = process("train", run.file, f"run.dir={folder}", "--json")
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    error = ended.stderr[ended.stderr.index("error: ") :]
    assert re.fullmatch(
        rf"error: {run.rows}:\d+: messages\[1\]\.role is 'gpt'\n"
        r"  fix: use system, user, assistant or tool, or map it: data\.role_names\.gpt=assistant\n",
        error,
    )
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_a_run_cleanly_and_a_second_run_in_its_folder_is_refused(run, tmp_path):
    """Its steps did not wait for data: encoders work ahead, in processes of their own, and the log says it."""
    folder = tmp_path / "run"
    settings = (run.file, f"run.dir={folder}", "train.steps=100000", "checkpoint.every=5", "service.prefetch=4")
    with (tmp_path / "log").open("w+") as log:
        driver = start(log, "train", *settings)
        try:
            wait_for_step(folder, 12, driver)
            second = process("train", *settings)
            os.killpg(driver.pid, signal.SIGINT)
            code = driver.wait(120)
        finally:
            if driver.poll() is None:
                driver.kill()
        log.seek(0)
        text = log.read()
    assert code == 130, text
    assert text.endswith(
        f"the same command goes on from the newest checkpoint in {folder}, if there is one\ninterrupted\n"
    )
    assert "Traceback" not in text and "error" not in text and re.search(GOODPUT, text)
    assert Manifest.read(newest(folder)).step >= 10
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == (
        f"error: {folder}: another dist-sft is training in this folder\n  fix: wait for it, or use another run.dir\n"
    )
    waits = [record["waited"] for record in records(folder)][:12]
    assert statistics.median(waits[1:]) < 0.05
    said = re.findall(r"step \d+/100000 .* wait (\d+\.\d)s", text)[:12]
    assert said == [f"{wait:.1f}" for wait in waits] and said.count("0.0") >= 9
