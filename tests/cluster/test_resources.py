"""What a training worker reserves of Ray, and what is said where Ray does not have it."""

import pytest

from dist_sft.core.errors import ClusterError
from dist_sft.run.resources import check_resources, worker_resources
from tests.kubernetes.cases import config_of


def test_a_worker_takes_one_of_the_resource_that_it_is_placed_by(tmp_path):
    config = config_of(tmp_path, "cluster={workers: 4, gpus_per_worker: 0, resource: trainer}")
    assert worker_resources(config) == {"CPU": 1, "trainer": 1}
    assert worker_resources(config_of(tmp_path, "cluster={workers: 4, gpus_per_worker: 2}")) == {"CPU": 1, "GPU": 2}


def test_too_few_of_a_resource_is_said_before_anybody_waits_for_it(tmp_path):
    config = config_of(tmp_path, "cluster={workers: 4, gpus_per_worker: 0, resource: trainer}")
    check_resources(config, {"CPU": 8, "trainer": 4}, "Ray")
    for have in ({"CPU": 8, "trainer": 3}, {"CPU": 8}):
        with pytest.raises(ClusterError, match=r"4 workers with 1 trainer each; Ray has [30]"):
            check_resources(config, have, "Ray")
