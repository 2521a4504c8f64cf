"""Claims of SECURITY.md that are tested nowhere else."""

import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from dist_sft.checkpoint.layout import Manifest, Shard
from dist_sft.checkpoint.partition import Piece
from dist_sft.checkpoint.shards import Pieces
from dist_sft.config.load import load_config as load_run
from dist_sft.core.errors import CheckpointError, ModelError
from dist_sft.core.files import sha256
from dist_sft.model.architecture import load_architecture
from dist_sft.model.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]


class Marks:
    """Its pickle writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_beside_a_model_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks a user who sits at a terminal
    ran, code = tmp_path / "ran", "from pathlib import Path\nPath({!r}).touch()\nclass C: ...\nM = T = C\n"
    model = tmp_path / "model"
    model.mkdir()
    (model / "own.py").write_text(code.format(str(ran)))
    of = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", "own.T"]}
    (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": of}))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": of}))
    run = tmp_path / "run.yaml"
    run.write_text(f"model: {{path: {model}}}\ndata: {{sources: [{{path: x}}]}}\ntrain: {{steps: 1}}\n")
    with pytest.raises(ModelError):
        load_architecture(load_run(run, []).model)
    with pytest.raises(ModelError):
        load_tokenizer(str(model))
    assert not ran.exists()


def manifest(folder, name, content, parameter="w"):
    shard = Shard(len(content), sha256(folder / Path(name).name), 0, {parameter: (0, 4)}, {})
    return Manifest(1, 1, 0, False, {}, {}, {parameter: (4,)}, {}, None, {name: shard}, {})


def test_a_pickle_in_the_place_of_a_shard_is_refused_and_runs_no_code(tmp_path):
    ran = tmp_path / "ran"
    content = pickle.dumps(Marks(ran))
    (tmp_path / "rank00000.safetensors").write_bytes(content)
    forged = manifest(tmp_path, "rank00000.safetensors", content)
    with pytest.raises(CheckpointError):
        Pieces(tmp_path, forged).read("weight", Piece("w", 0, 4, 0), torch.zeros(4))
    assert not ran.exists()
    pickle.loads(content)
    assert ran.exists()  # it would have


def test_nothing_in_the_package_runs_code_of_a_file():
    """A base's files of torch.save are read as tensors alone, as transformers reads them."""
    loads = re.compile(
        r"torch\.load\((?![^()]*weights_only=True)|pickle\.loads?\(|yaml\.(unsafe_)?load\(|weights_only=False|trust_remote_code=True"
    )
    assert not [path for path in (ROOT / "dist_sft").rglob("*.py") if loads.search(path.read_text())]


@pytest.mark.parametrize("name", ["../other/rank00000.safetensors", "/etc/rank00000.safetensors", "a/../../b"])
def test_a_manifest_cannot_name_a_file_outside_of_its_checkpoint(tmp_path, name):
    (tmp_path / Path(name).name).write_bytes(b"x")
    manifest(tmp_path, name, b"x").write(tmp_path)
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        Manifest.read(tmp_path)


RAY_OF_OURS = """
import os, subprocess, sys
from dist_sft.config.load import load_config
from dist_sft.cluster.session import connect, quiet
config = load_config(sys.argv[1], [])
quiet(config)
connect(config)
import ray
context = ray.get_runtime_context()
stranger = subprocess.run(
    [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)", context.gcs_address],
    env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=120)
print("mode", os.environ.get("RAY_AUTH_MODE"), "dashboard", repr(ray._private.worker.get_dashboard_url()),
      "stranger", stranger.returncode)
"""


@pytest.mark.xdist_group("cluster")
def test_a_ray_of_ours_asks_for_a_token_and_shows_no_dashboard(tmp_path, monkeypatch):
    """Also where `ray start` has left the address of another one on the machine."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short path: names of sockets lie under it
        monkeypatch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:1")
        refuse_strangers(tmp_path, monkeypatch)


def refuse_strangers(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run.yaml"
    run.write_text("model: {path: m}\ndata: {sources: [{path: x}]}\ntrain: {steps: 1}\n")
    said = subprocess.run(
        [sys.executable, "-c", RAY_OF_OURS, run], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    last = said.stdout.strip().splitlines()[-1:]
    assert last == ["mode token dashboard '' stranger 1"], said.stdout + said.stderr[-2000:]
