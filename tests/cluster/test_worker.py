"""What Ray Train's controller loads of a run."""

import pickle
import subprocess
import sys

from dist_sft.cluster.failures import EndOnErrors
from dist_sft.cluster.worker import train_loop_per_worker
from tests.ranks import ROOT

CONTROLLER = """
import pickle, sys
pickle.load(sys.stdin.buffer)
print(sorted({"torch", "transformers", "deepspeed"} & set(sys.modules)))
"""


def test_the_controller_imports_no_torch_for_what_it_passes_on():
    given = pickle.dumps((train_loop_per_worker, EndOnErrors()))
    ended = subprocess.run([sys.executable, "-c", CONTROLLER], input=given, capture_output=True, cwd=ROOT, check=True)
    assert ended.stdout == b"[]\n"
