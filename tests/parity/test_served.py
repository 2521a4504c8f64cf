"""What is exported answers through plain transformers as training taught it, and stops where training said."""

import subprocess

import pytest

from dist_sft.chat.templates import ChatTemplate
from tests.chat.templates.listing import listing
from tests.parity.served import CLOCK, TO_SPARE, Served, exported, lesson

pytestmark = [pytest.mark.xdist_group("templates"), pytest.mark.registry]

UNTRAINABLE = {name.name for name in listing() if not name.stops}


def lesson_of(entry, thoughts):
    try:
        return lesson(entry.paired(), ChatTemplate("auto", entry.source), thoughts)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no registry: {error}")


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in listing() if e.stops])
def test_an_export_answers_as_it_was_taught_and_stops_by_itself(entry, thoughts, tmp_path, monkeypatch):
    taught = lesson_of(entry, thoughts)
    if not taught:
        pytest.skip("refuses")
    served = Served(exported(taught, tmp_path))
    monkeypatch.setattr(*CLOCK)
    assert len(taught.answers) >= 3
    for answer in taught.answers:
        wanted, before = taught.tokens(answer), taught.before(answer)
        if not taught.unlike:
            assert before in served.prompts(taught, answer)
        assert served.generated(before, len(wanted) + TO_SPARE) == wanted
    print(
        "UNLIKE",
        entry.name,
        taught.settings,
        "thoughts" if "reasoning_content" in str(taught.rows) else "",
        "tools" if "tools" in taught.rows[0] else "",
        sorted(taught.unlike),
    )
