"""What is exported answers through plain transformers as training taught it, and stops where training said."""

import subprocess

import pytest

from dist_sft.chat.templates import ChatTemplate
from dist_sft.core.errors import TemplateError
from tests.chat.templates.listing import listing
from tests.parity.served import CLOCK, TO_SPARE, Served, exported, lesson

pytestmark = [pytest.mark.xdist_group("templates"), pytest.mark.registry]

SAME = (
    "Llama-3.1-8B-Instruct", "axolotl/llama4", "Gemma-2", "GLM-4.6", "gpt-oss-120b", "Kimi-K2-Instruct", "trl/cohere2",
    "Mistral-Nemo-Instruct-2407", "Mistral-7B-Instruct-v0.2", "Phi-3.5-mini-instruct", "DeepSeek-V3.1", "LFM2-8B-A1B",
    "functionary-medium-v3.1", "granite-3.3-2B-Instruct", "Solar-Open-100B", "vicuna-13b-1.1", "axolotl/chatml",
)  # fmt: skip
"""Of each way to open and close answers a template, where inference is as training was."""
OTHER = (
    "Qwen3-0.6B", "DeepSeek-R1-Distill-Qwen-32B", "Gemma-4-31B-it", "Nemotron-Nano-v2", "MiniMax-M2",
    "Apertus-8B-Instruct",
)  # fmt: skip
"""The same, where it is not."""
ENTRIES = {entry.name: entry for entry in listing() if entry.stops}


def cases():
    """All templates, with thoughts and without; those of the ordinary suite are few."""
    for name, entry in ENTRIES.items():
        for thoughts in (False, True):
            usual = name in (SAME + OTHER if not thoughts else ("Qwen3-0.6B",))
            id_ = name + ("-thoughts" if thoughts else "")
            yield pytest.param(entry, thoughts, id=id_, marks=[] if usual else [pytest.mark.soak])


def lesson_of(entry, thoughts=False):
    try:
        taught = lesson(entry.paired(), ChatTemplate("auto", entry.source), thoughts)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no registry: {error}")
    except TemplateError as error:
        assert entry.name not in SAME + OTHER, error
        pytest.skip(f"no chat can be trained with it: {error.what}")
    if taught is None:
        assert thoughts or entry.name not in SAME + OTHER
        pytest.skip("the template refuses these chats: see docs/templates.md")
    return taught


@pytest.mark.parametrize(("entry", "thoughts"), list(cases()))
def test_an_export_answers_as_it_was_taught_and_stops_by_itself(entry, thoughts, tmp_path, monkeypatch):
    """Where inference gives another prompt, `check` says so, and the answer follows what training had there."""
    taught = lesson_of(entry, thoughts)
    served = Served(exported(taught, tmp_path))
    monkeypatch.setattr(*CLOCK)
    assert len(taught.answers) >= 3
    others = 0
    for answer in taught.answers:
        wanted, prompt = taught.tokens(answer), served.prompt(taught, answer)
        others += prompt is None
        assert served.generated(prompt or taught.before(answer), len(wanted) + TO_SPARE) == wanted
    assert bool(others) == bool(taught.unlike), taught.unlike
    if not thoughts and entry.name in SAME + OTHER:
        assert bool(others) == (entry.name in OTHER)


@pytest.mark.parametrize("name", ["GLM-4.6", "Phi-3.5-mini-instruct"])
def test_an_export_that_lacks_a_learned_stop_goes_on_behind_it(name, tmp_path, monkeypatch):
    taught = lesson_of(ENTRIES[name])
    answer = taught.answers[0]
    wanted = taught.tokens(answer)
    served = Served(exported(taught, tmp_path, [id_ for id_ in taught.encoder.stop_ids if id_ != wanted[-1]]))
    monkeypatch.setattr(*CLOCK)
    made = served.generated(served.prompt(taught, answer), len(wanted) + TO_SPARE)
    assert made[: len(wanted)] == wanted and len(made) > len(wanted)
