"""What a job gets to see of this machine: the files that are read of what its run file names by a relative path.

No other file that lies beside them, and nothing that a link outside of the folder leads to.

run file ─> Package ─> .zip ─> the cluster ─> working directory of the job, on every node

An absolute path, a URL and a hub id mean the same on every node, and are not touched.
"""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from dist_sft.config.document import dotted
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError, DataError
from dist_sft.data.readers.find import local_file, named_files
from dist_sft.data.readers.needed import needed_files

LIMIT = 100_000_000
"""Bytes. It is kept in the memory of the head node, whose dashboard takes no request above 100 MiB."""

_MODEL = re.compile(
    r".*\.(json|safetensors|model|jinja|tiktoken|spm|bpe)|pytorch_model.*\.bin|(merges|vocab|added_tokens|spiece)\.\w+"
)
"""Names of the files that a model and its tokenizer are read from."""

LEFT_OUT = re.compile(r"\..*|__pycache__|venv|node_modules|runs|wandb|.*\.egg-info")
"""Names of files and folders that are not taken along with a folder that --include names."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in a .zip: equal files make an equal package, which is uploaded once."""


@dataclass(frozen=True)
class Package:
    """run_file: its path in the package.  files: path in the package -> file of this machine."""

    run_file: str
    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def listing(self) -> list[str]:
        """A line for each file, in the order of their paths: the size, and the path in the package."""
        return [f"{megabytes(path.stat().st_size):>10}  {name}" for name, path in sorted(self.files.items())]

    def write(self, to: Path) -> None:
        """As a .zip."""
        with zipfile.ZipFile(to, "w") as archive:
            for name, path in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (path.stat().st_mode & 0xFFFF) << 16
                archive.writestr(entry, path.read_bytes())


def package(run_file: Path, config: RunConfig, include: Sequence[str] = ()) -> Package:
    """Collect what a run needs of the current folder. include: further files and folders.

    Raises:
        ConfigError: a path that leads out of the current folder, a run.dir that would vanish with the job, or more
            than LIMIT bytes.
        DataError: a file that is not there.
    """
    _refuse_vanishing(config.run.dir)
    own = _inside(run_file) or run_file.name
    files = {own: run_file}
    if isinstance(config.deepspeed, str) and (name := _deepspeed(Path(config.deepspeed), run_file, own)):
        files[name] = Path(config.deepspeed)
    for key, path, named in _named(config):
        if not _same_everywhere(path):
            files.update({_within(key, path, file): file for file in _there(key, named)})
    for path in include:
        files.update({_within("--include", path, file): file for file in _there("--include", partial(_all, path))})
    found = Package(own, files)
    _refuse_large(found)
    return found


def _named(config: RunConfig) -> Iterator[tuple[str, str, Callable[[], Iterable[Path]]]]:
    """Settings that may name files, with what they name, and which files of it are read."""
    sources = {f"data.sources.{i}.path": source for i, source in enumerate(config.data.sources)}
    sources |= {dotted(("eval", *place)): held_out for place, held_out in config.eval.given.items()}
    for key, source in sources.items():
        yield key, source.path, partial(needed_files, source)
    if config.data.template.endswith(".jinja"):
        yield "data.template", config.data.template, partial(named_files, config.data.template)
    if Path(config.model.path).is_dir():  # else a hub id
        yield "model.path", config.model.path, partial(_of_model, Path(config.model.path))


def _same_everywhere(path: str) -> bool:
    return path.startswith(("/", "~", "hub:")) or bool(re.match(r"[A-Za-z][\w+.-]*(://|::)", path))


def _there(key: str, found: Callable[[], Iterable[Path]]) -> list[Path]:
    """The files that a setting names. Raises DataError, also where one is not there."""
    try:
        files = list(found())
        for file in files:
            if not file.exists():
                local_file(file).open()  # says why not
        return files
    except DataError as error:
        fix = f"{error.fix}; what lies on the cluster's storage is named by its absolute path"
        raise DataError(f"{error.what} on this machine", where=f"{key}: {error.where}", fix=fix) from None


def _of_model(folder: Path) -> list[Path]:
    """What transformers may read of a model: no other file that lies beside it."""
    files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    return sorted(file for file in files if _MODEL.fullmatch(file.name) and file.is_file())


def _all(path: str) -> list[Path]:
    """All files of a path, folder or glob that was asked for by --include."""
    place = Path(path)
    if not place.is_dir():
        return named_files(path)
    found: list[Path] = []
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not LEFT_OUT.fullmatch(name))
        files = (Path(folder, name) for name in sorted(names) if not LEFT_OUT.fullmatch(name))
        found += [file for file in files if file.is_file()]  # no socket, no link to nowhere
    return found


def _within(key: str, path: str, file: Path) -> str:
    """Path of a file in the package."""
    name = _inside(file)
    if name is None:
        raise ConfigError(
            "leads out of the current folder, which becomes the job's working directory",
            where=f"{key}: {path}",
            fix="submit from a folder that holds it, or name it by an absolute path on storage that all nodes see",
        )
    named = Path(path) if Path(path).is_dir() else Path()
    for folder in (Path(), named):  # the link may leave either
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{file} is a link that leads out of {'the current folder' if folder == Path() else folder}, to "
                f"{file.resolve()}",
                where=f"{key}: {path}",
                fix="name what it leads to by an absolute path on storage that all nodes see; or, if it may be "
                "uploaded, put a copy in the place of the link (cp -L)",
            )
    return name


def _inside(file: Path) -> str | None:
    """Path relative to the current folder, None outside of it."""
    name = PurePosixPath(os.path.relpath(file))
    return None if name.parts[0] == ".." else str(name)


def _deepspeed(found: Path, run_file: Path, own: str) -> str | None:
    """Path in the package of a DeepSpeed JSON; None for one that this package ships, or an absolute path elsewhere."""
    if name := _inside(found):
        return name
    folder = run_file.parent.resolve()
    return (PurePosixPath(own).parent / found.relative_to(folder)).as_posix() if found.is_relative_to(folder) else None


def _refuse_vanishing(run_dir: str) -> None:
    if not _same_everywhere(run_dir):
        raise ConfigError(
            f"run.dir is '{run_dir}', in the job's working directory: its checkpoints would vanish with the job",
            where="run.dir",
            fix="give an absolute path on storage that all nodes see, e.g. run.dir=/mnt/shared/" + run_dir,
        )


def _refuse_large(found: Package) -> None:
    if found.size <= LIMIT:
        return
    sizes = Counter[str]()
    for name, path in found.files.items():
        folder = PurePosixPath(name).parent
        sizes[f"{folder}/" if folder.name else name] += path.stat().st_size
    raise ConfigError(
        f"{megabytes(found.size)} would be uploaded, and {megabytes(LIMIT)} may be: "
        + ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.most_common(5)),
        where="working directory",
        fix="put the largest on storage that all nodes see, and name them by their absolute paths",
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
