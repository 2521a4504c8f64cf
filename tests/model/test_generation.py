"""On which tokens an export stops."""

import json

import pytest

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.generation import FILE, generation_of


@pytest.fixture
def base(tmp_path):
    """A function: what the base's generation config says, or None -> the settings of that model."""

    def settings(generation):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 3}))
        if generation is not None:
            (tmp_path / FILE).write_text(generation)
        return ModelSection(path=str(tmp_path))

    return settings


@pytest.mark.parametrize(
    ("generation", "stops"),
    [
        (None, [5, 8, 3]),
        ('{"eos_token_id": 8}', [5, 8]),
        ('{"eos_token_id": [7, 5]}', [5, 8, 7]),
        ('{"do_sample": true}', [5, 8]),
    ],
)
def test_an_export_stops_on_what_was_learned_then_where_the_base_did_and_on_nothing_else(base, generation, stops):
    assert generation_of(base(generation), [5, 8]).eos_token_id == stops


def test_a_generation_config_that_cannot_be_read_is_not_forgotten(base, tmp_path):
    with pytest.raises(ModelError) as caught:
        generation_of(base('{"eos_token_id": ['), [5])
    assert caught.value.where == str(tmp_path / FILE) and "correct the file, or remove it" in caught.value.fix
