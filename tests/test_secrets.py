"""No secret leaves the machine: some two hundred, in every place that a person may put one, and in every way out."""

import base64
import functools
import http.server
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import yaml

from dist_sft.commands.submit import prepare
from dist_sft.config.load import load_config
from dist_sft.config.redact import redacted
from dist_sft.config.resolve import resolved
from dist_sft.core.errors import DataError, SftError
from dist_sft.core.redact import HIDDEN, redact_urls, scrubbed
from dist_sft.kubernetes.manifest import render
from dist_sft.run.opened import open_run
from tests.command import process
from tests.ranks import ROOT, records, train_on_ranks

FORM = re.compile(r"zQ\d{3}wX\d{3}")
"""What each secret looks like, so that it can be looked for."""
_numbers = itertools.count(1)


def secret():
    """A new one."""
    number = next(_numbers)
    return f"zQ{number:03d}wX{number * 7 % 1000:03d}"


def urls(scheme="s3", host="bucket"):
    """URLs with a secret in each place where one can be."""
    s = secret
    return [
        f"{scheme}://me:{s()}@{host}/x.jsonl", f"{scheme}://{s()}@{host}/x.jsonl", f"{scheme}://:{s()}@{host}/x.jsonl",
        f"{scheme}://me:{s()}/a@{host}/x.jsonl", f"{scheme}://me:a#{s()}@{host}/x", f"{scheme}://me:a?{s()}@{host}/x",
        f"{scheme}://me:a@{s()}@{host}/x.jsonl", f"{scheme}://me:a b{s()}@{host}/x", f"{scheme}://me:a'{s()}@{host}/x",
        f"{scheme}://{s()}:{s()}@{host}/x.jsonl", f"zip://x.jsonl::{scheme}://me:{s()}@{host}/x.zip",
        f"simplecache::{scheme}://me:{s()}@{host}/x", f"blockcache::simplecache::{scheme}://me:{s()}@{host}/x",
        f"filecache::https://u:{s()}@h.org/x::zip://a.jsonl", f"{scheme.upper()}://ME:{s()}@{host}/x",
        f"https://h.org/x?token={s()}", f"https://h.org/x?{s()}", f"https://h.org/x?{s()}=", f"https://h.org/x#{s()}",
        f"https://h.org/x#access_token={s()}", f"https://h.org/x?a=1&X-Amz-Signature={s()}",
        f"https://h.org/x?a=1;b={s()}",
        f"https://h.org/x;jsessionid={s()}", f"https://h.org/x?download=true&sig={s()}%2F",
        f"https://h.org/x?next=/{s()}",
        f"https://h.org/x?download={s()}%20", f"https://x-access-token:{s()}@github.com/o/x.jsonl",
        f"abfs://box@a.dfs.core.windows.net/x?sv=1&sig={s()}", f"hf://me:{s()}@datasets/x",
        f"https://[::1]:80/x?k={s()}",
        f"postgresql+psycopg2://me:{s()}@db/x", f"jdbc:postgresql://me:{s()}@db/x", f"//me:{s()}@h.org/x.jsonl",
        f"me:{s()}@h.org:5432/x.jsonl", f"sftp://u:{s()}@h.org:22/x", f"https://h.org/a?b#c?d={s()}",
    ]  # fmt: skip


NAMES = (
    "password", "PGPASSWORD", "DB_PWD", "pass", "smtp_pass", "passphrase", "passwd", "GITHUB_PAT", "jwt", "bearer",
    "sas",
    "cookie", "session_cookie", "Authorization", "auth", "SENTRY_DSN", "slack_webhook", "privateKey", "signature",
    "sig",
    "aws_session_token", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "OPENAI_KEY", "sessionId", "api_key", "apikey",
    "HF_TOKEN", "WANDB_API_KEY", "hf-token", "clientSecret", "client_secret", "token", "access_token", "refreshToken",
    "credentials", "creds", "otp", "pin", "SSH_KEY", "AZURE_STORAGE_CONNECTION_STRING", "connectionString",
    "encryption_key", "secret", "SECRET_VALUE", "db_password_1", "token_b64", "accountKey", "x-api-key", "nonce",
)  # fmt: skip
HARMLESS = {
    "HF_HUB_CACHE": "/mnt/hub", "NCCL_DEBUG": "INFO", "NCCL_IB_GID_INDEX": "3", "OMP_NUM_THREADS": "8", "MY_FLAG": "1",
    "AWS_DEFAULT_REGION": "eu-central-1", "https_proxy": "http://proxy:3128", "MY_FOLDER": "/mnt/a/b.txt",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "WANDB_MODE": "offline", "TZ": "Europe/Berlin",
}  # fmt: skip


def leaks(text):
    return FORM.findall(text)


def base(path="/mnt/rows.jsonl", **sections):
    return {"run": {"name": "named", "dir": "/mnt/run"}, "model": {"path": "/mnt/model"},
            "data": {"sources": [{"path": path}]}, "train": {"steps": 1}, "deepspeed": {}} | sections  # fmt: skip


@pytest.mark.parametrize("url", urls())
def test_of_a_url_no_secret_is_shown(url, tmp_path, monkeypatch):
    config = load_config(base(url, eval={"source": {"path": url}}))
    said = json.dumps(redacted(resolved(config))) + config.data.sources[0].shown
    assert not leaks(said)
    with pytest.raises(SftError) as error:
        raise DataError(f"cannot read {url}", where=url, fix=f"look at {url}")
    assert not leaks(str(error.value)) and not leaks(repr(error.value)), "in a text nobody knows where a URL ends"
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(base(url)))
    monkeypatch.chdir(tmp_path)
    for out in (lambda: prepare(run_file, open_run(run_file), []), lambda: render(open_run(run_file, KUBERNETES))):
        with pytest.raises(SftError, match=r"secret|do not see") as error:
            out()
        assert not leaks(str(error.value))


KUBERNETES = ["run.dir=/mnt/dist-sft/run", "model.path=/mnt/dist-sft/m", "kubernetes.image=r.example.com/d:1"]


@pytest.mark.parametrize("value", [secret, lambda: int(re.sub(r"\D", "", secret()) + "1234")], ids=["text", "number"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_name_gives_away_is_hidden_and_never_sent(name, value, tmp_path, monkeypatch):
    hidden, run_file = value(), tmp_path / "run.yaml"
    for section in ({"deepspeed": {"wandb": {"enabled": False, name: hidden}}}, {"other": {name: hidden}}):
        assert str(hidden) not in json.dumps(redacted(section)) and HIDDEN in json.dumps(redacted(section))
    settings = base(deepspeed={"tensorboard": {"enabled": False, name: hidden}})
    settings["data"]["template_kwargs"] = {name: hidden}
    run_file.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    assert str(hidden) not in json.dumps(redacted(resolved(load_config(run_file))))
    with pytest.raises(SftError, match="looks like a secret") as error:
        prepare(run_file, open_run(run_file), [])
    assert str(hidden) not in str(error.value)
    run_file.write_text(yaml.safe_dump(base()))
    (tmp_path / "env.yaml").write_text(yaml.safe_dump({"env_vars": {name: hidden}}))
    with pytest.raises(SftError) as error:
        prepare(run_file, open_run(run_file), [], runtime_env=tmp_path / "env.yaml")
    assert str(hidden) not in str(error.value)
    with pytest.raises(SftError) as error:
        open_run(run_file, [*KUBERNETES, f"kubernetes.environment.{name.replace('-', '_')}={hidden}"])
    assert str(hidden) not in str(error.value)


def test_of_variables_that_nothing_here_knows_no_value_is_kept():
    one, another = secret(), secret()
    environment = HARMLESS | {"FOO": one, "CONFIG": f"a={another}"}
    kept = redacted(resolved(load_config(base(kubernetes={"image": "r/d:1", "environment": environment}))))
    assert not leaks(json.dumps(kept))
    shown = kept["kubernetes"]["environment"]
    assert {name: shown[name] for name in HARMLESS} == HARMLESS and shown["FOO"] == shown["CONFIG"] == HIDDEN


def readme():
    """The run file that README shows."""
    return re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


def test_settings_that_are_no_secret_are_all_shown(tmp_path):
    (tmp_path / "run.yaml").write_text(readme())
    config = load_config(tmp_path / "run.yaml", [])
    values = resolved(config) | {"cluster": resolved(config)["cluster"] | {"address": "ray://head:10001"}}
    assert redacted(values) == json.loads(json.dumps(values))
    secrets = {"WANDB_API_KEY": {"name": "wandb", "key": "api-key"}}
    settings = base(kubernetes={"image": "r/d:1", "secrets": secrets, "token_secret": "ray",
    "image_pull_secrets": ["a"],
                                "redis": {"address": "r:6379", "password": {"name": "redis",
                                "key": "password"}}})  # fmt: skip
    settings["data"] |= {"template_kwargs": {"enable_thinking": True, "date": "2024-05-01", "max_new_tokens": 512}}
    settings["model"]["neftune"] = {"layers": {"0": 5, "12": 2}}
    settings["deepspeed"] = {"aio": {"block_size": 1048576}, "zero_optimization": {"stage": 3, "offload_optimizer": {
        "device": "cpu", "pin_memory": True}}}  # fmt: skip
    values = resolved(load_config(settings))
    assert redacted(values) == json.loads(json.dumps(values))


def test_readmes_run_file_is_submitted(tmp_path, monkeypatch, tiny_rows):
    """Its empty `kubernetes.secrets` is no secret, and neither is the address of a cluster."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/gsm8k_train.jsonl", "data/chats/a.parquet", "data/gsm8k_test.jsonl", "data/held_out.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tiny_rows.read_bytes())
    (tmp_path / "run.yaml").write_text(readme().replace("token_share: 0.05", "weight: 1"))
    overrides = ["run.dir=/mnt/run", "model.path=/mnt/model", "cluster.address=ray://head:10001", "cluster.workers=1"]
    job = prepare(tmp_path / "run.yaml", open_run("run.yaml", overrides), overrides)
    assert "run.yaml" in job.package.files and "cluster.address=ray://head:10001" in job.command


def mistakes():
    """Run files and overrides in which a secret stands where a person may have put it by mistake."""
    s = secret
    good = yaml.safe_dump(base())
    yield from ((good, [text]) for text in (
        s(), f"password={s()}", f"trainer.api_key={s()}", f"train.stepz={s()}", f"run.name.x={s()}",
        f"run.seed.x={s()}",
        f"model={{pth: {s()}}}", f"model.tuning={{kind: lora, rnak: {s()}}}", f"data.sources.0.pth={s()}",
        f"--token={s()}",
        f"train.steps=[{s()}", f"s3://me:{s()}@bucket/x", f"data.sources.9.path={s()}", f"{s()}=1",
        f"kubernetes={{x: {s()}}}",
        f"tracking.wandb.api_key={s()}", f"kubernetes.secrets={{HF_TOKEN: {s()}}}", f"train.steps.0={s()}",
        f"x.{s()}=1",
        f"kubernetes={{image: r/d:1, environment: {{FOO: [{s()}]}}}}", f"cluster.workers={{a: {s()}}}", f"a b={s()}",
    ))  # fmt: skip
    digits = re.sub(r"\D", "", s())
    yield good, [f"password={digits}991"]
    yield from ((good + text, []) for text in (
        f"password: {s()}\n", f"wandb: {{api_key: {s()}}}\n", f"key: *{s()}\n", f"key: !{s()} x\n",
        f"key: &{s()} [*{s()}]\n",
        f'key: "\\q{s()}"\n', f"key: {'9' * 30}{digits}\n", f"key: [{s()}\n", f"- {s()}\n", f"{s()} x\n",
        f"? [{s()}]\n: 1\n",
        f"tracking: {{wandb: [{s()}]}}\n", f"kubernetes: {{image: r/d:1, environment: {{PGPASSWORD: [{s()}]}}}}\n",
        f"kubernetes: {{image: r/d:1, environment: {{PGPASSWORD: 1{digits}991}}}}\n",
        f"eval: {{source: {{pth: {s()}}}}}\n",
    ))  # fmt: skip


@pytest.mark.parametrize(("text", "overrides"), list(mistakes()))
def test_an_error_repeats_no_value_of_what_is_no_setting(text, overrides, tmp_path, sft):
    (tmp_path / "run.yaml").write_text(text)
    ended = sft("check", tmp_path / "run.yaml", "--fast", "--", *overrides)
    said = ended.out + ended.error
    assert ended.code in (1, 2) and ended.error
    where = str(overrides) + text
    assert not [found for found in leaks(said) if f"{found}=" not in where and f"{found} x" not in where], said
    assert not [digits for digits in re.findall(r"\d{6,}", where) if digits in said], said


def test_secrets_of_this_process_are_in_no_text_of_it(monkeypatch):
    """Whatever a library says in its errors."""
    known, of_url, plain = secret(), secret(), "just words"
    monkeypatch.setenv("MY_DB_PASSWORD", known)
    monkeypatch.setenv("SOME_PATH", plain)
    load_config(base(f"s3://me:{of_url}@bucket/x.jsonl"))
    said = scrubbed(f"HTTP 403 for user me with {of_url}, header {known}; {plain}")
    assert said == f"HTTP 403 for user me with {HIDDEN}, header {HIDDEN}; {plain}"
    assert scrubbed("train.tokens_per_pack=8192, control_tokens=parse, not key=value, --secret=NAME") == (
        "train.tokens_per_pack=8192, control_tokens=parse, not key=value, --secret=NAME"
    )
    header = base64.b64encode(b"me:12345678").decode()
    for text in ("password=hunter22", '"api_key": "hunter22"', f"Authorization: Basic {header}",
    "hf_abcdefghijklmnopqrstuvw",
                 "-----BEGIN RSA PRIVATE KEY-----\nhunter22\n-----END RSA PRIVATE KEY-----"):  # fmt: skip
        assert HIDDEN in redact_urls(text) and "hunter22" not in redact_urls(text) and header not in redact_urls(text)


class Guarded(http.server.SimpleHTTPRequestHandler):
    """A web server whose files are had with a password and a token."""

    def do_GET(self):
        given = base64.b64decode((self.headers.get("Authorization") or "").removeprefix("Basic ")).decode()
        if given != self.server.login or self.server.token not in self.path:
            self.send_error(403, f"not with {given} {self.path}")
            return
        super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture(scope="module")
def guarded(tiny_rows):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Guarded, directory=tiny_rows.parent))
    server.login, server.token = f"me:{secret()}", secret()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{server.login}@127.0.0.1:{server.server_port}/{tiny_rows.name}?key={server.token}"
    server.shutdown()


def settings_of(guarded, tiny_run, folder):
    """A run whose settings hold a secret wherever they may."""
    local = folder / "local.jsonl"
    rows = [json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})] * 30
    bad = {"messages": [{"role": f"https://me:{secret()}@h.org/x", "content": "x"}]}
    local.write_text("\n".join([*rows, json.dumps(bad)]) + "\n")
    return tiny_run | {
        "run": {"name": f"https://u:{secret()}@h.org/name", "dir": str(folder / "run")},
        "data": {"sources": [{"path": guarded}, {"path": str(local)}], "context_length": 256, "bad_rows": "drop",
                 "max_bad_share": 1.0, "template_kwargs": {"api_key": secret(), "password": 12345678}},
        "train": tiny_run["train"] | {"steps": 3, "samples_per_step": 30, "tokens_per_pack": 8192},
        "deepspeed": {"zero_optimization": {"stage": 0}, "_note": {"api_key": secret()}},
        "tracking": {"wandb": {"mode": "offline", "project": "p", "tags": [f"s3://me:{secret()}@b", "plain"]}},
        "kubernetes": {"image": "r/d:1", "environment": {"FOO": secret(), "NCCL_DEBUG": "INFO"}},
    }  # fmt: skip


def found_in(folder):
    """File and secret, wherever one lies in a folder."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.is_symlink()]
    assert files
    return [(str(path), hit) for path in files for hit in leaks(path.read_bytes().decode("latin-1"))]


def test_a_run_leaves_no_secret_behind(guarded, tiny_run, tmp_path, monkeypatch):
    """In run.json, run.yaml, metrics.jsonl, ledger.jsonl, W&B's files, the manifest; nor in its error."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, secret())
    settings = settings_of(guarded, tiny_run, tmp_path)
    train_on_ranks([settings], 1)
    run = tmp_path / "run"
    names = {path.name for path in run.rglob("*")}
    assert {"run.json", "metrics.jsonl", "ledger.jsonl", "manifest.json"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert found_in(run) == []
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert ledger and HIDDEN in ledger[0]["what"] and "local.jsonl:31" in ledger[0]["where"]
    facts = json.loads((run / "run.json").read_text())
    assert facts["config"]["data"]["sources"][0]["path"].startswith(f"http://{HIDDEN}@127.0.0.1:")
    assert facts["config"]["tracking"]["wandb"]["tags"] == [f"s3://{HIDDEN}@b", "plain"]
    assert facts["config"]["kubernetes"]["environment"]["NCCL_DEBUG"] == "INFO"
    assert len(records(run)) == 3

    more = settings | {"train": settings["train"] | {"steps": 4}, "data": settings["data"] | {"sources": [
        {"path": guarded.replace("me:", "me:wrong"), }, settings["data"]["sources"][1]]}}  # fmt: skip
    (error,) = train_on_ranks([more], 1, check=False)
    assert error and "Error: " in error and not leaks(error) and "127.0.0.1" in error


JOB = """
import json, sys
from dist_sft.cluster.session import connect, quiet
from dist_sft.config.load import load_config
config = load_config(sys.argv[1], sys.argv[2:])
quiet(config)
connect(config)
import ray
ray.get(ray.remote(lambda: 1).options(num_cpus=0).remote())
from ray._private.state import jobs
print(json.dumps(jobs(), default=str))
"""


@pytest.mark.soak
def test_neither_rays_logs_nor_its_list_of_jobs_show_a_secret(guarded, tiny_run, tmp_path, monkeypatch):
    """A run through the command, to its end and to an error; with secrets on the command line, too."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, secret())
    settings = settings_of(guarded, tiny_run, tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    with tempfile.TemporaryDirectory(dir="/tmp") as ray:  # a short path: names of sockets lie under it
        monkeypatch.setenv("RAY_TMPDIR", ray)
        override = f"eval.source={guarded}"
        ended = process("train", tmp_path / "run.yaml", override, timeout=600)
        assert ended.returncode == 0 and not leaks(ended.stdout + ended.stderr), ended
        failed = process("train", tmp_path / "run.yaml", override.replace("me:", "me:wrong"), timeout=600)
        assert failed.returncode == 1 and not leaks(failed.stdout + failed.stderr), failed
        listed = subprocess.run(
            [sys.executable, "-c", JOB, tmp_path / "run.yaml", override], cwd=ROOT, capture_output=True, text=True,
            timeout=300, check=True,
        )  # fmt: skip
        assert "127.0.0.1" in listed.stdout and "eval.source=" in listed.stdout and not leaks(listed.stdout)
        assert found_in(ray) == []
    assert found_in(tmp_path / "run") == []
