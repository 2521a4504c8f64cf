"""The environment of the processes that train."""

import pytest

from dist_sft.cluster.session import connect
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError
from dist_sft.run.resources import worker_environment


def test_ranks_meet_on_the_interface_that_the_run_file_names(tiny_run):
    def environment(**cluster):
        return worker_environment(RunConfig.model_validate(tiny_run | {"cluster": tiny_run["cluster"] | cluster}))

    assert environment(interface="ib0") == environment() | {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0"}


def test_a_ray_that_does_not_start_in_time_is_one_error_with_a_way_out(tiny_run, monkeypatch):
    """What Ray raises after 30 s on a machine that is too busy; it is a plain Exception."""
    said = "The current node timed out during startup. This could happen because some of the raylet failed to startup."

    def init(**_):
        raise Exception(said)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError) as error:
        connect(RunConfig.model_validate(tiny_run))
    assert str(error.value).startswith(
        f"local Ray: Ray did not start on this machine: {said}\n  fix: run the same command"
    )
    assert str(error.value).count("\n") == 1
