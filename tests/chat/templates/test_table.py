"""Real chat templates: exactly the right tokens are learned, and little is refused."""

import tomllib
from pathlib import Path

import pytest

from tests.chat.templates.conversations import KINDS, PLAIN
from tests.chat.templates.judge import judged
from tests.chat.templates.listing import listing
from tests.chat.templates.table import PAGE, line, totals_of

pytestmark = pytest.mark.xdist_group("templates")

REFUSED = tomllib.loads((Path(__file__).parent / "refused.toml").read_text()).get("refused", [])
NAMED = {(one["template"], one["kind"]) for one in REFUSED}
ENTRIES = [
    pytest.param(entry, id=entry.name, marks=[pytest.mark.registry, *([pytest.mark.soak] if entry.soak else [])])
    for entry in listing()
]
ONE_OF_EACH = {entry.tokenizer: entry for entry in listing()}.values()


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_template_teaches_exactly_what_inference_sees_and_does(entry, cells_of):
    faults = [cell for cell in cells_of(entry) if cell.verdict in ("wrong", "objection")]
    assert not faults, "\n".join(f"{cell.kind}: {cell.verdict}: {cell.why}" for cell in faults)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_template_refuses_no_row_that_it_can_hold_unless_it_is_named(entry, cells_of):
    refused = {(cell.template, cell.kind): cell.why for cell in cells_of(entry) if cell.verdict == "unjustified"}
    assert {key: why for key, why in refused.items() if key not in NAMED} == {}
    assert {key for key in NAMED if key[0] == entry.name} == set(refused), "named in refused.toml, but not refused"


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_page_of_templates_shows_what_is_found(entry, cells_of):
    assert line(entry, cells_of(entry)) in PAGE.read_text().splitlines()


@pytest.mark.soak
@pytest.mark.registry
@pytest.mark.parametrize("entry", ONE_OF_EACH, ids=lambda entry: entry.tokenizer)
def test_a_whole_tokenizer_gives_the_same_verdicts_as_its_first_merges(entry, cells_of):
    assert [cell.verdict for cell in judged(entry, whole=True)] == [cell.verdict for cell in cells_of(entry)]


def test_what_is_refused_all_the_same_is_little_never_plain_and_has_a_reason():
    assert len(NAMED) == len(REFUSED) <= 0.02 * len(listing()) * (len(KINDS) - len(PLAIN))
    assert {name for name, _ in NAMED} <= {entry.name for entry in listing()}
    assert all(one["kind"] in set(KINDS) - set(PLAIN) and one["why"] for one in REFUSED)


def test_the_page_of_templates_counts_its_own_cells():
    legend, shown = totals_of(PAGE.read_text())
    assert legend == shown and sum(shown.values()) == len(listing()) * len(KINDS)


def test_the_listing_has_many_families_and_no_template_twice():
    entries = listing()
    assert len({entry.sha256 for entry in entries}) == len({entry.name for entry in entries}) == len(entries) >= 60
    assert len({entry.family for entry in entries if not entry.soak}) >= 25
