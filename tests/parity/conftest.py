"""The runs of this folder: each number of ranks is started once, and executes all of its cases."""

import functools
import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.parity import by_hand
from tests.parity.cases import EVERY, LORA, NOISY, ROWS, SAMPLES_PER_STEP, Case, covering, noise
from tests.ranks import train_on_ranks

SILENT = [14, 15, 16, 18, 19, 20]
"""Rows without a loss weight: all of the third step but one, so that all ranks but one have nothing to learn there."""


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A file of chats of many lengths and weights, in the order in which they are learned."""
    from dist_sft.demo.dataset import conversations

    path = tmp_path_factory.mktemp("parity_rows") / "rows.jsonl"
    chats = []
    for i, row in enumerate(conversations(seed=2, count=ROWS, held_out=False)):
        messages = [dict(turn) for turn in row.messages]
        messages[-1]["loss_weight"] = (1.0, 0.5, 1.0, 0.1, 3.0)[i % 5]
        if i % 6 == 0:
            messages[0]["content"] += " please" * i
        chats.append({"messages": messages})
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return path


@pytest.fixture(scope="session")
def base(tiny_run, rows):
    """Settings that all runs share."""
    data = {
        "sources": [{"path": str(rows)}],
        "context_length": 256,
        "overlong": "error",
        "order": {"kind": "sequential"},
    }
    return tiny_run | {"data": data}


@pytest.fixture(scope="session")
def plain(base):
    """A function: case, folder, more of the run -> a run without noise."""
    return lambda case, folder, **more: case.settings(base, folder) | {"silent": SILENT} | more


@pytest.fixture(scope="session")
def expected(request, tiny_model, rows):
    """A function: case -> losses, gradient norms and weights of the loop by hand."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    samples = [by_hand.encoded(tokenizer, json.loads(line)) for line in rows.read_text().splitlines()]
    samples = [(ids, weights * (i not in SILENT)) for i, (ids, weights) in enumerate(samples)]
    steps = [samples[begin : begin + SAMPLES_PER_STEP] for begin in range(0, ROWS, SAMPLES_PER_STEP)]

    @functools.cache
    def learned(tuning, optimizer):
        adapters = request.getfixturevalue("first_adapters") if tuning == "lora" else None
        return by_hand.learned(tiny_model, steps, optimizer, adapters, LORA["alpha"] / LORA["rank"])

    return lambda case: learned(case.tuning, case.optimizer)


@pytest.fixture(scope="session")
def cases(request):
    """Those that are compared with the loop by hand. DeepSpeedCPUAdam takes minutes to compile where it never ran."""
    extensions = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()
    built = request.config.getoption("--soak") or any(extensions.glob("*/cpu_adam/cpu_adam.so"))
    compiled = covering([case for case in EVERY if case.compiled], together=1) if built else []
    return covering([case for case in EVERY if not case.compiled]) + compiled


@pytest.fixture(scope="session")
def executed(base, plain, cases, tmp_path_factory):
    """Folders: of each case; of each case with noise; and of a run whose adapters are still as they were made."""
    folder = tmp_path_factory.mktemp("parity")
    folders = {case: folder / f"plain{i}" for i, case in enumerate(cases)}
    noisy = {case: folder / f"noisy_{case.tuning}{i}" for cases in NOISY.values() for i, case in enumerate(cases)}
    untrained = plain(Case(tuning="lora"), folder / "untrained")
    untrained["train"] |= {"epochs": None, "steps": 1, "learning_rate": 1e-30}
    for ranks in (1, 2, 3):
        runs = [plain(case, folders[case]) for case in folders if case.ranks == ranks]
        runs += [case.settings(base, noisy[case], **noise(case.tuning)) for case in noisy if case.ranks == ranks]
        train_on_ranks(runs + [untrained] * (ranks == 1), ranks, timeout=1800)
    return folders, noisy, folder / "untrained"


@pytest.fixture(scope="session")
def first_adapters(executed):
    """What the adapters hold before the first update; it is drawn at random, so the loop by hand must be told."""
    weights = consolidated(newest(executed[2]))
    return {name: value for name, value in weights.items() if "lora_" in name}
