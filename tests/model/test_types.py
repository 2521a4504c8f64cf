"""Every causal type of transformers trains rightly or is refused with words; none crashes. See tools/model_types.py."""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tools import model_types
from tools.model_types import REFUSED, TRAINS, judge

ORDINARY = {
    "llama": TRAINS, "qwen3": TRAINS, "gpt2": TRAINS, "gemma2": TRAINS, "ctrl": TRAINS,
    "bloom": REFUSED, "mpt": REFUSED, "cpmant": REFUSED, "falcon": REFUSED, "git": REFUSED, "gpt_neo": REFUSED,
    "bert": REFUSED, "roberta": REFUSED, "electra": REFUSED, "xlnet": REFUSED, "mamba": REFUSED, "mixtral": REFUSED,
}  # fmt: skip
"""Those that crashed our own code or were trained wrongly, and some that are used much."""


def table():
    """Type, verdict, words."""
    return {row.type: row.verdict for row in model_types.rows()}


@pytest.mark.parametrize("name", ORDINARY)
def test_a_type_trains_rightly_or_is_refused(name):
    found = judge(name)
    assert found.verdict == ORDINARY[name], found


def test_the_table_holds_all_types_and_none_that_trains_wrongly_or_crashes():
    """Of types with towers, those that were judged so far; all that are for text alone."""
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= set(table()) <= set(model_types.types())
    assert {name: verdict for name, verdict in table().items() if name in ORDINARY} == ORDINARY


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(set(table()) - set(ORDINARY)))
def test_each_type_is_as_the_table_says(name):
    found = judge(name)
    assert found.verdict == table()[name], found


def test_a_model_that_computes_otherwise_than_is_trained_is_found(monkeypatch):
    """The trial itself: attention that forgets its scale, and one without its window."""
    from transformers import CONFIG_MAPPING

    from dist_sft.model.attention import interface
    from dist_sft.model.trial import try_architecture

    kernel = interface.KERNELS[interface.SEGMENTS]
    assert try_architecture(CONFIG_MAPPING["gemma2"]()) == {}
    for fault in ({"scaling": 0.5}, {"window": None}, {"softcap": None}):

        def broken(query, key, value, pack, call, fault=fault):
            from dataclasses import replace

            return kernel(query, key, value, pack, replace(call, **fault))

        monkeypatch.setitem(interface.KERNELS, interface.SEGMENTS, broken)
        said = try_architecture(CONFIG_MAPPING["gemma2"]())
        assert "gemma2 would be trained as another model than transformers runs" in said["what"], fault
