"""Every mistake of a new user ends with one clear error: what, where, how to mend it. Exit code 1; nothing is touched.

The fixture `run` compares the run folder, with its last whole checkpoint, before and after each test. A full disk while
saving is in tests/checkpoint/test_resume.py.
"""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import filelock
import pytest

from dist_sft.chat import spans
from dist_sft.cluster.runner import check_resources
from dist_sft.config.load import load_config
from dist_sft.core.errors import ClusterError
from tests.command import chat, process

pytestmark = pytest.mark.xdist_group("cluster")  # one worker makes the run of the fixture


def append(path, line):
    """Add a line to a file of 60 rows, and look at all of them."""
    with path.open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    return "train.steps=5"


# Rows and files


def test_a_row_that_is_not_json(refused, run):
    every = append(run.rows, "{not json}\n")
    assert refused("check", run.file, every) == (
        f"{run.rows}:61: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)\n"
        "  fix: one whole JSON object per line"
    )


def test_a_wrong_role(refused, run):
    every = append(run.rows, chat("user", "gpt"))
    assert refused("check", run.file, every) == (
        f"{run.rows}:61: messages[1].role is 'gpt'\n"
        "  fix: use system, user, assistant or tool, or map it: data.role_names.gpt=assistant"
    )


def test_the_fix_for_a_wrong_role_mends_it(sft, run):
    every = append(run.rows, chat("user", "gpt"))
    run_dir = f"run.dir={run.dir}-elsewhere"
    assert sft("check", run.file, every, run_dir, "data.role_names.gpt=assistant").code == 0


def test_invalid_utf_8(refused, run):
    every = append(run.rows, b'{"messages": "caf\xe9"}\n')
    assert refused("check", run.file, every) == (
        f"{run.rows}:61: invalid UTF-8: byte 0xe9 at column 18\n  fix: save the file as UTF-8"
    )


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_data_set(refused, run, content):
    run.rows.write_text(content)
    assert refused("check", run.file) == (
        f"{run.rows}: there is no row in it\n  fix: check the path, or remove the source"
    )


def test_a_file_that_is_not_there(refused, run):
    missing = run.rows.with_name("row.jsonl")
    assert refused("check", run.file, f"data.sources=[{missing}]") == (
        f"{missing}: no such file\n  fix: did you mean rows.jsonl?"
    )


def test_a_file_that_cannot_be_read(refused, run):
    inside = run.rows / "x.jsonl"
    assert refused("check", run.file, f"data.sources=[{inside}]").startswith(f"{inside}: cannot be read: Not a dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read_it(refused, run):
    run.rows.chmod(0)
    try:
        assert refused("check", run.file).startswith(f"{run.rows}: cannot be read: Permission denied")
    finally:
        run.rows.chmod(0o600)


def test_a_bad_held_out_row(refused, run, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(chat("user", "assistant") + chat("user", "gpt"))
    assert refused("check", run.file, f"eval.source={held_out}").startswith(f"{held_out}:2: messages[1].role is 'gpt'")


# Templates and lengths

GEMMA = """\
{%- for message in messages -%}
{%- if message.role in ('system', 'tool') -%}{{ raise_exception(message.role ~ ' role not supported') }}{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""


@pytest.mark.parametrize(("role", "roles"), [("system", "system user assistant"), ("tool", "user tool assistant")])
def test_a_template_without_the_role(refused, run, tmp_path, role, roles):
    template = tmp_path / "gemma.jinja"
    template.write_text(GEMMA)
    run.rows.write_text(chat("user", "assistant") + chat(*roles.split()))
    assert refused("check", run.file, f"data.template={template}") == (
        f"{run.rows}:2: the chat template refuses this row: {role} role not supported\n"
        "  fix: change the row, or choose another data.template"
    )


def test_a_template_that_leaves_the_role_out(refused, run, tmp_path):
    template = tmp_path / "silent.jinja"
    refuse = "{{ raise_exception(message.role ~ ' role not supported') }}"
    template.write_text(GEMMA.replace(refuse, "{% continue %}"))
    run.rows.write_text(chat("user", "assistant") + chat("system", "user", "assistant"))
    error = refused("check", run.file, f"data.template={template}")
    assert error.startswith(f"{run.rows}:2: the chat template does not write messages[0].content\n  fix: choose")


def test_a_template_without_a_stop_token(refused, run, tmp_path):
    template = tmp_path / "endless.jinja"
    template.write_text(
        GEMMA.replace("+ '<|im_end|>\\n'", "+ ('\\n' if message.role == 'assistant' else '<|im_end|>\\n')")
    )
    assert refused("check", run.file, f"data.template={template}").endswith(
        "the chat template writes no special token after an answer: no model would learn to stop\n"
        "  fix: write {{ eos_token }} at the end of each assistant's turn"
    )


def test_a_mask_on_which_two_ways_do_not_agree(sft, run, monkeypatch):
    """The first way is broken: it learns whatever anybody says."""
    monkeypatch.setattr(spans, "weights_of", lambda conversation, _: tuple(1.0 for _ in conversation.messages))
    ended = sft("check", run.file, "--fast", "data.cache=null", f"run.dir={run.dir}-elsewhere")
    assert ended.code == 1 and "Traceback" not in ended.error
    assert re.match(
        rf"error: this does not hold: two ways agree on each learned token \(13, at most 0\): {run.rows}:\d+: "
        r"messages\[0\] is learned, and should not be; learned is '.+', expected ''\n  fix: look at the row with ",
        ended.error,
    )


def test_the_certificate_of_the_first_rows(sft, run):
    (found,) = sft("check", run.file, "--fast", "--rows", "7", "--json").values
    assert (found["masks_looked_at"], found["masks_proved"]) == (7, 7)
    masks = found["masks"]
    assert (masks["rows"], masks["disagreed"], masks["disagreements"], masks["stop_share"]) == (7, 0, [], 1.0)
    assert masks["coverage"]["assistant"]["share"] == 1.0 and masks["coverage"]["user"]["share"] == 0.0
    assert masks["supervised"] == masks["coverage"]["assistant"]["supervised"] > masks["answers"]
    assert [proof["holds"] for proof in found["proofs"]] == [True, True]


def test_a_template_that_is_not_there(refused, run):
    assert refused("check", run.file, "data.template=chatlm") == (
        "data.template: chatlm: no such template: [Errno 2] No such file or directory: 'chatlm'\n"
        "  fix: use auto, chatml, llama3, roles, or the path of a .jinja file"
    )


def test_a_template_whose_tokens_the_tokenizer_lacks(refused, run):
    error = refused("check", run.file, "data.template=llama3")
    assert error.startswith("data.template: llama3: the tokenizer has no special token <|begin_of_text|>, ")
    assert "fix: choose a template made for this model (data.template=auto)" in error


def test_a_template_that_is_not_jinja(refused, run, tmp_path):
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}{{ m.role }")
    error = refused("check", run.file, f"data.template={tmp_path / 'broken.jinja'}")
    assert "line 1" in error and "the chat template is not Jinja: unexpected '}'\n  fix: " in error


def test_a_context_shorter_than_every_sample(refused, run):
    error = refused("check", run.file, "data.context_length=4")
    assert re.fullmatch(
        rf"{run.rows}:\d+: none of the first 13 rows can be learned \(overlong\); the first: \d+ tokens, "
        r"\d+ more than fit\n  fix: raise data.context_length \(now 4\)",
        error,
    )


# Models


def test_a_folder_without_a_model(refused, run, tmp_path):
    fix = "\n  fix: model.path is a hub id, or a folder with config.json, weights and tokenizer"
    assert refused("check", run.file, f"model.path={tmp_path}") == f"{tmp_path}: there is no model here{fix}"
    gone = tmp_path / "gone"
    assert refused("check", run.file, f"model.path={gone}") == f"{gone}: there is no such folder{fix}"


def test_a_model_without_weights(refused, run):
    (run.model / "model.safetensors").unlink()
    assert refused("check", run.file) == (
        f"{run.model}: the folder holds no weights\n"
        "  fix: put model.safetensors or pytorch_model.bin beside its config.json"
    )


def test_a_model_with_half_its_weights(refused, run, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run.model, model)
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    elsewhere = (f"model.path={model}", f"run.dir={tmp_path / 'run'}")
    assert refused("check", run.file, *elsewhere) == (
        f"{model}: 1 of 2 files of weights are missing, the first model-00002-of-00002.safetensors\n"
        "  fix: download or copy the model again"
    )
    index.write_text("{")
    assert refused("check", run.file, *elsewhere).startswith(f"{index}: the list of weights cannot be read: ")


def test_a_model_without_a_tokenizer(refused, run):
    (run.model / "tokenizer.json").unlink()
    error = refused("check", run.file)
    assert error.startswith(f"{run.model}: no tokenizer can be loaded: ") and "\n  fix: " in error


def test_noise_at_a_block_that_the_model_does_not_have(refused, run):
    assert refused("check", run.file, "model.neftune={layers: {0: 5, 7: 1}}") == (
        "model.neftune.layers: there is no block 7: the model has 2\n  fix: use 0 (the embeddings) to 1"
    )


@pytest.mark.parametrize("config", ["{", '{"model_type": "nosuch"}', "{}"])
def test_a_model_whose_config_is_broken(refused, run, config):
    (run.model / "config.json").write_text(config)
    error = refused("check", run.file)
    assert error.startswith(f"{run.model}: the model cannot be loaded: ") and "\n  fix: check model.path" in error


# The machine


@pytest.fixture
def small_machine(monkeypatch):
    """Two CPUs, no GPU, no Ray."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("dist_sft.run.resources.RAY_STARTED", Path("/nowhere"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_too_few_gpus(refused, run, small_machine):
    assert refused("check", run.file, "cluster.gpus_per_worker=1", "cluster.workers=2") == (
        "cluster.workers=2, cluster.gpus_per_worker=1: 2 workers with 1 GPU each: 2 in all; this machine has 0\n"
        "  fix: lower cluster.workers or cluster.gpus_per_worker (0 trains on CPU), "
        "or set cluster.address to a larger Ray cluster"
    )


def test_too_few_cpus(refused, run, small_machine):
    assert refused("check", run.file, "cluster.workers=3", "cluster.cpus_per_worker=1") == (
        "cluster.workers=3, cluster.cpus_per_worker=1: 3 workers with 1 CPU each: 3 in all; this machine has 2\n"
        "  fix: lower cluster.workers or cluster.cpus_per_worker (0.5 lets two workers share a CPU), "
        "or set cluster.address to a larger Ray cluster"
    )


def test_what_a_named_cluster_has_is_not_guessed_from_this_machine(sft, run, small_machine):
    assert sft("check", run.file, "--fast", "cluster.workers=64", "cluster.address=ray://head:10001").code == 0


def test_what_ray_has_is_what_counts_in_training(run):
    config = load_config(run.file, ["cluster.workers=4", "cluster.gpus_per_worker=2"])
    check_resources(config, {"CPU": 4, "GPU": 8}, "Ray")
    with pytest.raises(ClusterError, match="4 workers with 2 GPUs each: 8 in all; Ray has 7"):
        check_resources(config, {"CPU": 4, "GPU": 7}, "Ray")
    with pytest.raises(ClusterError, match="Ray has 0"):
        check_resources(config, {"CPU": 4}, "Ray")


def test_a_cluster_that_does_not_answer(refused, run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = refused("train", run.file, f"cluster.address={address}")
    assert error.startswith(f"{address}: no Ray cluster answers: Connection refused\n  fix: check cluster.address")


# The run file


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("model.tuning={kind: lora, rnak: 8}", "model.tuning.rnak is not a setting\n  fix: did you mean 'rank'?"),
        ("train.learning_rate=fast", "train.learning_rate is 'fast', not a number"),
        ("train.learning_rate=0", "train.learning_rate is 0, not a number above 0"),
        ("data.overlong=drp", "data.overlong is 'drp', not one of drop, truncate, error\n  fix: did you mean 'drop'?"),
        ("train.steps", "not key=value\n  fix: write e.g. train.learning_rate=1e-5"),
        ("data.sources=[]", "data.sources is empty\n  fix: add data.sources"),
    ],
)  # fmt: skip
def test_a_bad_override(refused, run, override, error):
    where = override if "rnak" not in override else "model.tuning=..."
    assert refused("check", run.file, override) == f"override '{where}': {error}"


def test_an_unknown_key_and_a_bad_value_in_the_run_file_are_both_named_with_their_lines(refused, run):
    text = run.file.read_text().replace("  steps: 1", "  steps: many\n  pakcing: true")
    run.file.write_text(text)
    line = text.splitlines().index("  steps: many") + 1
    assert refused("steps", run.file) == (
        "2 problems in the run file\n"
        f"{run.file}:{line}: train.steps is 'many', not a whole number\n"
        f"{run.file}:{line + 1}: train.pakcing is not a setting\n  fix: did you mean 'packing'?"
    )


def test_a_run_file_that_is_not_there_or_not_yaml(refused, run, tmp_path):
    (tmp_path / "mine.yaml").write_text("model:\n\tpath: x\n")
    assert refused("train", tmp_path / "run.yaml") == (
        f"{tmp_path}/run.yaml: no such run file\n  fix: there are mine.yaml in {tmp_path}"
    )
    assert refused("train", tmp_path / "mine.yaml") == (
        f"{tmp_path}/mine.yaml:2: a tab where YAML wants spaces\n  fix: indent with spaces"
    )


def test_a_contradiction_between_the_run_file_and_the_deepspeed_json(refused, run, tmp_path):
    (tmp_path / "mine.json").write_text('{\n  "zero_optimization": {"stage": 2},\n  "gradient_clipping": 3.0\n}\n')
    assert refused("check", run.file, f"deepspeed={tmp_path / 'mine.json'}") == (
        f"{tmp_path}/mine.json:3: gradient_clipping is 3.0, but train.clip makes it 1.0\n"
        '  fix: remove it, or write "auto": the run file decides it'
    )


def test_a_changed_setting_that_would_change_what_is_learned(refused, run):
    error = refused("check", run.file, "train.learning_rate=0.5")
    assert error.startswith(f"{run.dir}: this run has checkpoints, and would learn something else from here on: ")
    assert "train.learning_rate" in error
    assert error.endswith("fix: undo the change, or start a new run in another run.dir")


# The run folder


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_run_folder_that_is_a_file(refused, run, command):
    assert refused(command, run.file, f"run.dir={run.rows}/run") == (
        f"{run.rows}: this is a file, and a folder is wanted here\n  fix: set run.dir to a folder that you may write"
    )


def test_a_run_folder_that_cannot_be_made(refused, run):
    error = refused("train", run.file, "run.dir=/proc/nowhere/run")
    assert error.startswith("/proc")
    assert error.endswith("fix: set run.dir to a folder that you may write")


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_run_folder_that_is_a_url(refused, run, command):
    error = refused(command, run.file, "run.dir=s3://bucket/run")
    assert error.startswith("run.dir: run.dir is 's3://bucket/run', a URL") and "the URL as checkpoint.url" in error
    assert not Path("s3:").exists()


def test_two_runs_in_the_same_folder(refused, run):
    with filelock.FileLock(run.dir / ".lock"):
        assert refused("train", run.file) == (
            f"{run.dir}: another dist-sft is training in this folder\n  fix: wait for it, or use another run.dir"
        )


# Export


def test_an_export_of_a_folder_that_is_no_run(refused, run, tmp_path):
    for folder in (tmp_path, run.model, run.rows, tmp_path / "gone"):
        assert refused("export", folder, tmp_path / "out") == (
            f"{folder}: this is not the folder of a run: run.json is not there or not readable\n"
            "  fix: give the run.dir of a run file that was trained"
        )
    assert not (tmp_path / "out").exists()


def test_an_export_of_a_run_of_another_version(refused, tmp_path):
    for facts in ("{}", '{"config": {"modle": {}}}'):
        (tmp_path / "run.json").write_text(facts)
        error = refused("export", tmp_path, tmp_path / "out")
        assert error.startswith(f"{tmp_path}/run.json: run.json holds no config of this version of dist-sft")


def test_an_export_of_a_run_without_a_checkpoint(refused, run, tmp_path):
    shutil.copy(run.dir / "run.json", tmp_path)
    assert refused("export", tmp_path, tmp_path / "out") == (
        f"{tmp_path}/checkpoints: this run has no checkpoint\n  fix: train first: dist-sft train RUN.yaml"
    )
    assert refused("export", run.dir, tmp_path / "out", "--step", 7) == (
        f"{run.dir}/checkpoints: no checkpoint of step 7; there are steps 1\n  fix: name a step that is there"
    )


def test_an_export_onto_something_that_is_there(refused, run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        assert refused("export", run.dir, out) == (
            f"{out}: the output is there already\n  fix: give a new folder, or remove it"
        )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    inside = tmp_path / "thesis.txt" / "out"
    assert refused("export", run.dir, inside).startswith(f"{tmp_path}/thesis.txt: this is a file, and a folder")


def test_merging_a_run_that_has_no_adapter(refused, run, tmp_path):
    assert refused("export", run.dir, tmp_path / "out", "--merge") == (
        f"{run.dir}: --merge is for adapters; this run trained all weights\n  fix: leave --merge out"
    )


def test_an_export_that_fails_leaves_nothing_behind(refused, run, tmp_path):
    (run.model / "config.json").write_text("{")
    assert refused("export", run.dir, tmp_path / "out").startswith(f"{run.model}: the model cannot be loaded: ")
    assert not list(tmp_path.iterdir())


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train"], "Missing argument 'RUN.yaml'"),
        (["check", "run.yaml", "--nope"], "No such option: --nope"),
        (["preview", "run.yaml", "--row", "-1"], "--row"),
        (["steps", "run.yaml", "--world", "0"], "--world"),
    ],
)
def test_a_command_that_was_typed_wrongly_ends_with_2_and_the_usage(sft, arguments, message):
    ended = sft(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.error and "--help" in ended.error


def test_every_command_has_an_example_in_its_help(sft, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("train", "preview", "steps", "check", "rayjob", "export", "demo"):
        ended = sft(command, "--help")
        assert ended.code == 0
        assert re.search(rf"Examples?: dist-sft {command} ", ended.out), command


def test_the_version_is_told():
    ended = process("--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"dist-sft \d+\.\d+\.\d+\n", ended.stdout)


# As a user sees it: other processes


def test_an_error_is_all_that_the_terminal_shows(run):
    every = append(run.rows, chat("user", "gpt"))
    ended = process("check", str(run.file), every)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: {run.rows}:61: messages[1].role is 'gpt'\n"
        "  fix: use system, user, assistant or tool, or map it: data.role_names.gpt=assistant\n"
    )


def test_libraries_add_nothing_to_what_a_command_prints(run, tmp_path):
    ended = process("export", str(run.dir), str(tmp_path / "out"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"written: {tmp_path / 'out'}\n"


@pytest.mark.parametrize("command", [("train",), ("check", "--fast")], ids=["train", "check"])
def test_a_missing_key_of_wandb_is_said_before_anything_starts(refused, run, tmp_path, monkeypatch, command):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("dist_sft.cluster.runner.connect", lambda config: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)
    given = (run.file, f"run.dir={tmp_path / 'run'}", "tracking.wandb={project: p}")
    assert refused(*command, *given) == (
        "tracking.wandb: W&B has no API key on this machine\n"
        "  fix: log in (wandb login, or WANDB_API_KEY on every node), or set tracking.wandb.mode=offline"
    )
