"""An environment of its own for Unsloth, which wants other versions of transformers, TRL and datasets than ours.

Its CPU path needs neither Triton, bitsandbytes, xformers, torchvision nor diffusers, which it names as dependencies and
which would bring several GB of CUDA: it is installed without dependencies, and what it imports is named here.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tools.benchmarks.measure import WORK

TORCH = "torch==2.13.0"
UNSLOTH = ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9")
NEEDED = (
    "transformers==5.17.0",  # the newest that this Unsloth accepts, as are the next two
    "trl==1.15.0",
    "datasets==4.8.5",
    "peft>=0.18",
    "accelerate",
    "einops",
    "filelock",
    "hf_transfer",
    "msgspec",
    "numpy",
    "packaging",
    "pillow",
    "protobuf",
    "psutil",
    "regex",
    "requests",
    "sentencepiece",
    "setuptools",
    "tqdm",
    "typing_extensions",
    "tyro",
    "wheel",
)


def python() -> Path:
    """The interpreter of the environment; the first call makes it, which takes some minutes."""
    folder = WORK / "unsloth_venv"
    recipe, done = "\n".join((TORCH, *UNSLOTH, *NEEDED)), folder / ".done"
    if not done.exists() or done.read_text() != recipe:
        print("installing Unsloth into an environment of its own ...", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        _torch(folder)
        _pip(folder, "--no-deps", *UNSLOTH)
        _pip(folder, TORCH, *NEEDED)
        done.write_text(recipe)
    return folder / "bin" / "python"


def _torch(folder: Path) -> None:
    """The CPU build: from where pip is configured to look, else from PyTorch's own index (as tools/setup does)."""
    try:
        _pip(folder, "--no-deps", TORCH + "+cpu")
    except subprocess.CalledProcessError:
        _pip(folder, "--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", TORCH + "+cpu")


def _pip(folder: Path, *what: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--no-input", "install", *what]
    subprocess.run(command, check=True, stdout=sys.stderr)
