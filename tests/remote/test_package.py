"""What a submission sends to a cluster, and what it refuses to send: found before any cluster is asked."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import yaml

from dist_sft.commands.submit import next_id, prepare
from dist_sft.config.load import load_config
from dist_sft.core.errors import ClusterError, ConfigError
from dist_sft.data.readers.find import find_files
from dist_sft.remote.jobs import Job
from dist_sft.remote.package import LIMIT, package
from dist_sft.run.opened import open_run

NOBODY = ("--address", "http://127.0.0.1:9")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run file whose settings name files in all the ways there are."""
    for name in ("data/a.jsonl", "data/b.jsonl", "data/__pycache__/c.pyc", "held_out.jsonl", "chat.jinja", "other.txt",
                 "model/config.json", "model/.git/HEAD", "runs/old/checkpoint"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    settings = {
        "run": {"name": "named", "dir": "/mnt/shared/run"},
        "model": {"path": "model"},
        "data": {"sources": [{"path": "data/*.jsonl"}, {"path": "/mnt/shared/c.jsonl"}, {"path": "hub:openai/gsm8k"},
                             {"path": "s3://bucket/d.jsonl"}], "template": "chat.jinja"},
        "eval": {"sources": [{"name": "math", "path": "held_out.jsonl"}], "share": 0.1},
        "train": {"steps": 1},
        "deepspeed": "zero.json",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_only_what_the_run_file_names_is_sent(folder):
    sent = package(folder / "run.yaml", load_config("run.yaml", ()))
    assert sorted(sent.files) == [
        "chat.jinja", "data/a.jsonl", "data/b.jsonl", "held_out.jsonl", "model/config.json", "run.yaml", "zero.json"
    ]  # fmt: skip
    more = package(folder / "run.yaml", load_config("run.yaml", ()), ["."])
    assert set(more.files) - set(sent.files) == {"other.txt"}


def test_an_archive_is_sent_as_it_is_whatever_split_of_it_is_meant(folder):
    (folder / "rows.zip").write_bytes(b"not looked into here")
    for path in ("rows.zip", "*.zip"):
        sources = f'data.sources=[{{path: "{path}", split: test}}]'
        assert "rows.zip" in package(folder / "run.yaml", load_config("run.yaml", [sources])).files


def test_equal_files_make_an_equal_package(folder):
    sent = package(folder / "run.yaml", load_config("run.yaml", ()))
    sent.write(folder / "1.zip")
    os.utime(folder / "data/a.jsonl", (1e9, 1e9))
    sent.write(folder / "2.zip")
    assert (folder / "1.zip").read_bytes() == (folder / "2.zip").read_bytes()
    with zipfile.ZipFile(folder / "1.zip") as archive:
        assert archive.read("zero.json") == (folder / "zero.json").read_bytes()


def test_a_run_file_elsewhere_is_found_beside_its_deepspeed_json(folder, tmp_path_factory):
    apart = tmp_path_factory.mktemp("apart")
    for name in ("run.yaml", "zero.json"):
        (folder / name).rename(apart / name)
    sent = package(apart / "run.yaml", load_config(apart / "run.yaml", ()))
    assert sent.run_file == "run.yaml" and sent.files["zero.json"] == apart / "zero.json"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["run.dir=runs/a"],
            "run.dir: run.dir is 'runs/a', in the job's working directory: its checkpoints would vanish",
        ),
        (
            ["eval.sources=[data/a.jsonl, ../rows.jsonl]"],
            "eval.sources.1: ../rows.jsonl: leads out of the current folder",
        ),
        (
            ["eval={source: held.jsonl}"],
            "eval.source: held.jsonl: no such file on this machine\n  fix: did you mean held_out",
        ),
        (["--include", "nothing"], "--include: nothing: no such file on this machine"),
        (["--secret", "WANDB_API_KEY=s3cr3t"], "--secret WANDB_API_KEY=...: a secret is given by its name alone"),
        (["data.sources.3.path=s3://me:s3cr3t@bucket/d"], "run.yaml: data.sources.3.path looks like a secret"),
        (["--runtime-env", "env.yaml"], "env.yaml: env_vars.HF_TOKEN looks like a secret"),
        (["--runtime-env", "bad.yaml"], "bad.yaml: not what Ray takes: "),
        (["--runtime-env", "dir.yaml"], "dir.yaml: working_dir is made of what the run file names"),
        (["deepspeed={zero_optimization: {stage: 9}}"], "deepspeed: the ZeRO stage is 9"),
    ],
)
def test_what_cannot_work_or_would_leak_is_refused_here(folder, refused, arguments, error):
    (folder.parent / "rows.jsonl").write_text("{}")
    (folder / "env.yaml").write_text("env_vars: {HF_HOME: /mnt/hub, HF_TOKEN: s3cr3t}")
    (folder / "bad.yaml").write_text("env_vars: {OMP_NUM_THREADS: 1}")
    (folder / "dir.yaml").write_text("working_dir: .")
    said = refused("submit", "run.yaml", *arguments, *NOBODY)
    assert said.startswith(error) and "s3cr3t" not in said


def test_too_much_is_refused_with_the_sizes(folder, refused):
    with (folder / "model" / "model.safetensors").open("wb") as file:
        file.truncate(LIMIT)
    said = refused("submit", "run.yaml", *NOBODY)
    assert said.startswith("working directory: 100.0 MB would be uploaded, and 100.0 MB may be: model/ 100.0 MB, ")


def test_the_command_of_a_job_is_what_one_would_type(folder):
    overrides = ["model={path: /mnt/base, tuning: {kind: lora}}", "cluster.address=ray://elsewhere:10001"]
    job = prepare(folder / "run.yaml", open_run("run.yaml", overrides), overrides, secrets=["WANDB_API_KEY"])
    assert job.command == (
        "dist-sft train run.yaml 'model={path: /mnt/base, tuning: {kind: lora}}' cluster.address=ray://elsewhere:10001 "
        "cluster.address=null --secret=WANDB_API_KEY"
    )
    assert job.runtime_env == {} and job.metadata["run"] == "named"


def test_jobs_of_a_run_are_numbered_and_one_runs_at_a_time():
    def job(job_id, status):
        return Job(job_id, status, "", None, "")

    ended = [job("a-1", "FAILED"), job("a-10", "STOPPED"), job("a-1-4", "RUNNING"), job("ab-30", "RUNNING")]
    assert next_id("a", [], "") == "a-1" and next_id("a", ended, "") == "a-11"
    with pytest.raises(ClusterError, match="run 'a' is pending on this cluster as job a-2"):
        next_id("a", [*ended, job("a-2", "PENDING")], "")
    assert next_id("größer / besser", [], "") != next_id("grösser / besser", [], "")
    assert len(next_id("x" * 200, [], "")) < 80


@pytest.fixture
def stray(folder, tmp_path_factory):
    """A folder of rows, beside what lies about: keys, notes, links out of it and inside it."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "id_rsa").write_text("PRIVATE")
    (outside / "rows.jsonl").write_text("PRIVATE")
    rows = folder / "rows"
    (rows / "more").mkdir(parents=True)
    for name in ("a.jsonl", "more/b.jsonl"):
        (rows / name).write_text('{"messages": []}\n')
    for name in ("id_rsa", ".env", "notes.txt", "README.md", "more/key.pem", "a.jsonl.bak", "_hidden.jsonl", "run.log"):
        (rows / name).write_text("PRIVATE")
    (rows / "c.jsonl").symlink_to(rows / "a.jsonl")
    (rows / "link").symlink_to(outside / "id_rsa")
    (rows / "linked").symlink_to(outside)
    (rows / "nowhere.jsonl").symlink_to(outside / "nothing")
    return rows


def sent_with(folder, *overrides, include=()):
    found = package(folder / "run.yaml", load_config("run.yaml", overrides), include).files
    return {
        name for name in found if not name.startswith(("model/", "run.yaml", "zero.json", "chat.jinja", "held_out"))
    }


def test_of_a_folder_only_what_is_read_as_data_is_sent(folder, stray):
    assert sent_with(folder, "data.sources=[{path: rows}]") == {"rows/a.jsonl", "rows/more/b.jsonl", "rows/c.jsonl"}
    assert sent_with(folder, "data.sources=[{path: 'rows/more/*.jsonl'}]") == {"rows/more/b.jsonl"}


@pytest.mark.parametrize("source", ["rows", "'rows/*.jsonl'", "rows/out.jsonl"])
def test_no_link_leads_out_of_what_is_sent(folder, stray, source):
    (stray / "nowhere.jsonl").unlink()
    (stray / "out.jsonl").symlink_to((stray / "linked").readlink() / "rows.jsonl")
    with pytest.raises(
        ConfigError, match=r"rows/out\.jsonl is a link that leads out of .*outside\d*/rows\.jsonl"
    ) as error:
        sent_with(folder, f"data.sources=[{{path: {source}}}]")
    assert "PRIVATE" not in str(error.value) and "cp -L" in error.value.fix


def test_neither_a_linked_folder_nor_a_saved_data_set_nor_a_model_leads_out(folder, stray):
    outside = (stray / "linked").readlink()
    with pytest.raises(ConfigError, match="leads out of the current folder"):
        sent_with(folder, "data.sources=[{path: rows/linked/rows.jsonl}]")
    saved = folder / "saved"
    saved.mkdir()
    (saved / "dataset_info.json").write_text("{}")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"../../{outside.name}/rows.jsonl"}]}))
    with pytest.raises(ConfigError, match="leads out of the current folder"):
        sent_with(folder, "data.sources=[{path: saved}]")
    (saved / "data.arrow").write_text("x")
    (saved / "other.arrow").write_text("PRIVATE")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert sent_with(folder, "data.sources=[{path: saved}]") == {
        "saved/data.arrow", "saved/state.json", "saved/dataset_info.json"
    }  # fmt: skip
    (folder / "model" / "id_rsa").write_text("PRIVATE")
    (folder / "model" / "model.safetensors").write_text("x")
    files = package(folder / "run.yaml", load_config("run.yaml", ["data.sources=[{path: rows/a.jsonl}]"])).files
    assert {name for name in files if name.startswith("model")} == {"model/config.json", "model/model.safetensors"}
    (folder / "model" / "tokenizer.json").symlink_to(outside / "id_rsa")
    with pytest.raises(ConfigError, match=r"model/tokenizer\.json is a link that leads out"):
        sent_with(folder, "data.sources=[{path: rows/a.jsonl}]")


def test_a_folder_is_read_there_as_here(folder, stray, tmp_path_factory):
    """With the card that says which files are which split, and archives."""
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: a.jsonl}\n"
    (stray / "README.md").write_text(card + "  - {split: test, path: more/*.jsonl}\n---\n")
    with zipfile.ZipFile(folder / "rows" / "more" / "z.zip", "w") as archive:
        archive.writestr("inner.jsonl", "{}")
    sent = package(folder / "run.yaml", load_config("run.yaml", ["data.sources=[{path: rows}, {path: rows/more}]"]))
    names = {name for name in sent.files if name.startswith("rows")}
    assert names == {"rows/README.md", "rows/a.jsonl", "rows/more/b.jsonl", "rows/more/z.zip"}
    there = tmp_path_factory.mktemp("there")
    sent.write(there / "package.zip")
    with zipfile.ZipFile(there / "package.zip") as archive:
        archive.extractall(there)
    for path in ("rows", "rows/more"):
        here, away = find_files(path), find_files(str(there / path))
        assert [found.name for found in here] == [found.name.removeprefix(f"{there}/") for found in away]


def test_what_is_sent_is_listed_before_a_cluster_is_asked(folder, stray, sft):
    (folder / "model" / "config.json").unlink()
    ended = sft("submit", "run.yaml", "data.sources=[{path: rows}]", "model.path=/mnt/base", *NOBODY)
    listing, _, rest = ended.error.partition("error: ")
    assert ended.code == 1 and "nobody answers" in rest
    assert [line.split()[-1] for line in listing.splitlines()] == [
        "MB:", "chat.jinja", "held_out.jsonl", "rows/a.jsonl", "rows/c.jsonl", "rows/more/b.jsonl", "run.yaml",
        "zero.json",
    ]  # fmt: skip


def test_a_run_file_that_is_called_like_an_option_is_none(folder):
    (folder / "run.yaml").rename(folder / "--help.yaml")
    overrides = ["model.path=/mnt/base"]
    job = prepare(Path("--help.yaml"), open_run("--help.yaml", overrides), overrides)
    assert job.command == "dist-sft train ./--help.yaml model.path=/mnt/base" and "--help.yaml" in job.package.files


@pytest.mark.parametrize(
    "line", ["# s3://me:s3cr3t@bucket/x", "# token: hf_s3cr3ts3cr3ts3cr3t", "x-api: &x {password: 1}"]
)
def test_the_text_of_a_run_file_is_sent_without_secrets_in_its_comments_too(folder, line):
    overrides = ["model.path=/mnt/base", "data.sources=[{path: /mnt/a.jsonl}]"]
    text = (folder / "run.yaml").read_text()
    prepare(folder / "run.yaml", open_run("run.yaml", overrides), overrides)
    (folder / "run.yaml").write_text(f"{text}{line}\n")
    with pytest.raises(ConfigError) as error:
        prepare(folder / "run.yaml", open_run("run.yaml", overrides), overrides)
    assert "s3cr3t" not in str(error.value) and f"run.yaml:{text.count(chr(10)) + 1}: " in str(error.value)


def test_what_a_later_override_replaces_is_a_secret_of_the_command_all_the_same(folder):
    overrides = ["model.path=/mnt/base", "eval={source: 's3://me:s3cr3t@b/x'}", "eval={source: /mnt/x.jsonl}"]
    with pytest.raises(ConfigError, match=r"^override 2: eval\.source looks like a secret") as error:
        prepare(folder / "run.yaml", open_run("run.yaml", overrides), overrides)
    assert "s3cr3t" not in str(error.value)
