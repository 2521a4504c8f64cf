"""Find and read a DeepSpeed JSON."""

import json
import sys
from pathlib import Path

from dist_sft.config.document import MOST_DEPTH, Document, parse_yaml, read_settings
from dist_sft.core.errors import ConfigError


def find_deepspeed(name: str, run_folder: Path, where: str) -> Path:
    """The DeepSpeed JSON that `deepspeed:` names.

    Looked for in the current folder, beside the run file, in the checkout that this package belongs to, and in
    `share/dist-sft` of the Python environment (where a wheel puts ds_configs). An absolute path is taken as it is.

    Raises:
        ConfigError: at `where`, with the locations that were searched and the files that there are.
    """
    roots = [Path(), run_folder, *shipped_roots()]
    for root in roots:
        if (root / name).is_file():
            return (root / name).resolve()
    shipped = sorted({f"ds_configs/{p.name}" for root in shipped_roots() for p in (root / "ds_configs").glob("*.json")})
    searched = dict.fromkeys(str(root.resolve()) for root in roots)
    raise ConfigError(
        f"deepspeed is '{name}', and there is no such file"
        + ("" if Path(name).is_absolute() else f" in {', '.join(searched)}"),
        where=where,
        fix=f"use one of {', '.join(shipped)}, or a path of your own",
    )


def shipped_roots() -> list[Path]:
    """Folders whose ds_configs belong to this package."""
    return [Path(__file__).resolve().parents[2], Path(sys.prefix) / "share" / "dist-sft"]


def read_deepspeed(path: Path) -> Document:
    """A DeepSpeed JSON with the line of each key.

    Raises:
        ConfigError: missing, not JSON, not an object, or a key that stands twice.
    """
    try:
        text = read_settings(path, "the DeepSpeed JSON")
    except FileNotFoundError:
        what = "the DeepSpeed JSON cannot be read: no such file"
        raise ConfigError(what, where=str(path), fix="check the path") from None
    try:
        value = json.loads(text, parse_constant=_refused, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", fix="correct the JSON") from None
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", where=str(path), fix="write a number") from None
    except RecursionError:
        what = f"more than {MOST_DEPTH} levels within one another"
        raise ConfigError(what, where=str(path), fix="nest less") from None
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", where=f"{path}:1", fix='write {"zero_optimization": {"stage": 3}}')
    # JSON is YAML but for tabs, which may stand only between its tokens: parsing it again as YAML tells the lines.
    return Document(value, parse_yaml(text.replace("\t", " "), str(path)).locations)


def _refused(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a whole number beyond 64 bits")
    return int(digits)
