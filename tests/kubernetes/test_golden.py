"""The manifests of usual runs are those in golden/, and would be accepted.

After a change that is meant: `pytest tests/kubernetes/test_golden.py --write-golden`, and read the diff.
"""

import pytest
import yaml

from tests.kubernetes.cases import CASES, GOLDEN, written
from tests.kubernetes.strict import complaints


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_is_the_one_that_was_reviewed(name, tmp_path, request):
    file, text = GOLDEN / f"{name}.yaml", written(name, tmp_path)
    if request.config.getoption("--write-golden"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_breaks_no_schema_and_no_rule(name):
    objects = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    assert objects[-1]["kind"] == "RayJob"
    assert [complaint for made in objects for complaint in complaints(made)] == []


def test_there_is_no_golden_file_without_a_case():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(CASES)
