"""CustomResourceDefinitions -> what a validator needs of them: python -m tests.kubernetes.schemas.reduce CRD.yaml ...

Keeps the schema of the version that is stored, without descriptions; see README.md for where the files come from.
"""

import gzip
import json
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


def reduce(definition):
    """One CRD as (file name, schema)."""
    spec = definition["spec"]
    version = next(version for version in spec["versions"] if version["storage"])
    name = f"{spec['group']}_{version['name']}_{spec['names']['kind']}.json.gz"
    return name, without_descriptions(version["schema"]["openAPIV3Schema"])


def without_descriptions(value):
    if isinstance(value, dict):
        return {
            key: without_descriptions(inner)
            for key, inner in value.items()
            if not (key == "description" and isinstance(inner, str))
        }
    return [without_descriptions(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    for path in sys.argv[1:]:
        name, schema = reduce(yaml.load(Path(path).read_text(), Loader=yaml.CSafeLoader))
        text = json.dumps(schema, separators=(",", ":"), sort_keys=True)
        (FOLDER / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        print(name, (FOLDER / name).stat().st_size)
