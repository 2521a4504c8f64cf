"""The environment of the processes that train."""

from dist_sft.config.run_config import RunConfig
from dist_sft.run.resources import worker_environment


def test_ranks_meet_on_the_interface_that_the_run_file_names(tiny_run):
    def environment(**cluster):
        return worker_environment(RunConfig.model_validate(tiny_run | {"cluster": tiny_run["cluster"] | cluster}))

    assert environment(interface="ib0") == environment() | {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0"}
