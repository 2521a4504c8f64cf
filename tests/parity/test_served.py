"""What is exported answers through plain transformers as training taught it, and stops where training said."""

import subprocess

import pytest

from dist_sft.chat.templates import ChatTemplate
from tests.chat.templates.listing import listing
from tests.parity.served import CLOCK, TO_SPARE, Served, exported, lesson

pytestmark = [pytest.mark.xdist_group("templates"), pytest.mark.registry]


def lesson_of(entry, thoughts):
    try:
        return lesson(entry.paired(), ChatTemplate("auto", entry.source), thoughts)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no registry: {error}")


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name + ("|soak" if e.soak else "|usual")) for e in listing() if e.stops])
def test_an_export_answers_as_it_was_taught_and_stops_by_itself(entry, thoughts, tmp_path, monkeypatch):
    taught = lesson_of(entry, thoughts)
    if not taught:
        pytest.skip("refuses")
    served = Served(exported(taught, tmp_path))
    monkeypatch.setattr(*CLOCK)
    assert len(taught.answers) >= 3
    others = []
    bad = []
    for answer in taught.answers:
        wanted, before = taught.tokens(answer), taught.before(answer)
        others += [answer.turn] if before not in served.prompts(taught, answer) else []
        made = served.generated(before, len(wanted) + TO_SPARE)
        if made != wanted:
            bad.append((served.tokenizer.decode(made), served.tokenizer.decode(wanted)))
    line = (
        "UNLIKE",
        entry.name,
        thoughts,
        f"{len(others)}/{len(taught.answers)}",
        taught.settings,
        "tools" if "tools" in taught.rows[0] else "",
        sorted(taught.unlike),
        [served.tokenizer.convert_ids_to_tokens(i) for i in served.model.generation_config.eos_token_id],
        "BAD" if bad else "",
    )
    print(*line)
    assert not bad
    assert bool(others) == bool(taught.unlike), [
        (served.tokenizer.decode(taught.before(a)), [served.tokenizer.decode(p) for p in served.prompts(taught, a)])
        for a in taught.answers
        if a.turn in others
    ]
