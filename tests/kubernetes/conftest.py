"""Renders the base run, and finds the objects in what is rendered."""

import pytest

from tests.kubernetes import cases


@pytest.fixture
def render(tmp_path):
    """A function: overrides -> all objects."""
    return lambda *overrides: cases.objects_of(tmp_path, *overrides)


@pytest.fixture
def job(render):
    """A function: overrides -> the RayJob."""
    return lambda *overrides: render(*overrides)[-1]
