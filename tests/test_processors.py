"""The tests of what is computed end alike on processors with other features, and with more threads.

What this processor has is switched off in the environment of a run of pytest of its own. Nothing can be switched on:
where there is no bfloat16 arithmetic, its row is skipped as not available here.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml

import pytest

from dist_sft.model.precision import cpu_has_bfloat16
from tests.ranks import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200), pytest.mark.xdist_group("processors")]

COMPUTED = ("model", "train", "proofs", "parity")
"""Folders of the tests that say something of numbers."""
FEATURES = {
    "bfloat16 on": {},
    "bfloat16 off": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """A function: features, threads -> outcome of each test."""
    kept = {}

    def run(features, threads):
        if (features, threads) not in kept:
            report = tmp_path_factory.mktemp("verdicts") / "report.xml"
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-n", "0", f"--junit-xml={report}",
                 *(f"tests/{folder}" for folder in COMPUTED)],
                cwd=ROOT, env=os.environ | FEATURES[features] | {"OMP_NUM_THREADS": str(threads)},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert report.exists(), done.stdout + done.stderr
            kept[features, threads] = {
                f"{test.get('classname')}::{test.get('name')}": next(
                    (child.tag for child in test if child.tag != "properties"), "passed"
                )
                for test in xml.parse(report).iter("testcase")
            }
        return kept[features, threads]

    return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("features", FEATURES)
def test_verdicts_are_the_same(verdicts, features, threads):
    if features == "bfloat16 on" and not cpu_has_bfloat16():
        pytest.skip("not available: this processor has neither AVX-512 BF16 nor AMX")
    found = verdicts(features, threads)
    assert len(found) > 300
    assert {test: verdict for test, verdict in found.items() if verdict not in ("passed", "skipped")} == {}
    assert found == verdicts("AVX2", 1)
