"""An export holds a file's worth of weights, not the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.measured import ALLOCATOR, resident
from tests.ranks import ROOT

FILE = 8 << 20
WEIGHTS = 30 * (4 * 256 * 256 + 3 * 256 * 1024) * 4
"""Bytes of the blocks of the model below, in float32."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model of 30 blocks, 4 MB each, in files of 8 MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=300, hidden_size=256, intermediate_size=1024, num_hidden_layers=30, num_attention_heads=4
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=FILE)
    return folder


@pytest.mark.xdist_group("export-memory")
@pytest.mark.parametrize("kind", ["full", "merged"])
def test_the_peak_of_an_export_is_some_files(model, kind, tmp_path):
    spec = json.dumps({"model": str(model), "kind": kind, "out": str(tmp_path / "out")})
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.test_export_memory", spec],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env={"PATH": "", **ALLOCATOR},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    print(f"{peak >> 20} MiB of {WEIGHTS >> 20}")
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) > WEIGHTS
    assert peak < WEIGHTS / 3


def export(model, kind, out):
    """Peak of the resident memory over that before, in bytes."""
    import torch

    from dist_sft.config.sections import FullTuning, LoraTuning, ModelSection
    from dist_sft.model import adapters, streamed
    from dist_sft.model.saved import save_adapter, save_full
    from dist_sft.model.stored import stored_weights

    streamed.FILE = FILE
    lora = LoraTuning(kind="lora", rank=4)
    settings = ModelSection(path=model, dtype="float32", tuning=FullTuning(kind="full") if kind == "full" else lora)
    base = _skeleton(model)
    shapes = adapters.trained_shapes(adapters.with_adapters(_skeleton(model), lora, 0))
    trained = {name: torch.ones(shape) for name, shape in shapes.items()}
    read = stored_weights(settings, base)
    read("model.norm.weight")
    before = resident()
    if kind == "full":
        save_full(settings, _Read(read, base.state_dict()), [1], out)
    else:
        save_adapter(settings, trained, [1], out, merge=True)
    return resident("VmHWM") - before


def _skeleton(model):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))


class _Read(dict):
    """Weights that are read when they are asked for."""

    def __init__(self, read, names):
        super().__init__(dict.fromkeys(names))
        self.read = read

    def __getitem__(self, name):
        return self.read(name)


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    Path(spec["out"]).mkdir()
    print(export(spec["model"], spec["kind"], Path(spec["out"])))
