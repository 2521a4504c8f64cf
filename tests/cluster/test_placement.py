"""Encoders and dealer take no room that a worker waits for, and rather none beside GPUs: also on a real Ray."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_sft.cluster.placement import place_encoders
from dist_sft.cluster.runner import data_service
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError
from dist_sft.run.opened import open_run
from dist_sft.run.resources import check_resources
from tests.cluster.test_preflight import forget_authentication

pytestmark = pytest.mark.xdist_group("cluster")


def config_of(workers=2, cpus=4, encoders=2, each=1, gpus=0, **service):
    return RunConfig.model_validate({
        "model": {"path": "none"},
        "data": {"sources": [{"path": "none"}]},
        "train": {"steps": 1},
        "cluster": {"address": "auto", "workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus},
        "service": {"encoders": encoders, "cpus_per_encoder": each, **service},
    })  # fmt: skip


def node(name, **has):
    return {"NodeID": name, "Alive": True, "Resources": {key: float(value) for key, value in has.items()}}


def room(nodes, taken, config):
    """Workers that fit beside encoders on these nodes, counted one by one."""
    count = 0
    for one in nodes:
        left = one["Resources"]["CPU"] - taken.count(one["NodeID"]) * config.service.cpus_per_encoder
        if left < 0:
            return -1
        while left >= config.cluster.cpus_per_worker:
            left -= config.cluster.cpus_per_worker
            count += 1
    return count


def test_encoders_are_packed_where_spread_ones_would_take_the_last_workers_node():
    nodes = [node(name, CPU=4) for name in "abc"]
    assert len(set(place_encoders(config_of(), nodes))) == 1


def test_encoders_that_take_no_workers_room_are_spread_over_nodes_without_gpus():
    nodes = [node("gpu", CPU=64, GPU=8), node("a", CPU=4), node("b", CPU=4), node("gone", CPU=99) | {"Alive": False}]
    assert sorted(place_encoders(config_of(cpus=1, gpus=1), nodes)) == ["a", "b"]
    assert place_encoders(config_of(cpus=1, gpus=1), nodes[:1]) == ["gpu", "gpu"]


@given(
    cpus=st.lists(st.integers(0, 6), min_size=1, max_size=4), worker=st.integers(1, 4), encoder=st.integers(1, 3),
    count=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=300)
def test_no_other_way_leaves_more_room_and_only_what_cannot_be_is_refused(cpus, worker, encoder, count):
    nodes = [node(str(i), CPU=number) for i, number in enumerate(cpus)]
    config = config_of(workers=1, cpus=worker, encoders=count, each=encoder)
    ways = itertools.combinations_with_replacement([one["NodeID"] for one in nodes], count)
    most = max(room(nodes, way, config) for way in ways)
    if most < 1:
        with pytest.raises(ClusterError, match="the nodes have room for"):
            place_encoders(config, nodes)
    else:
        assert room(nodes, tuple(place_encoders(config, nodes)), config) == most


def test_what_would_wait_for_ever_is_said(tmp_path):
    pair = [node("a", CPU=4), node("b", CPU=4)]
    with pytest.raises(
        ClusterError, match=r"2 workers with 4 CPU each, beside 2 encoders with 1 CPU each, .* room for 1"
    ):
        place_encoders(config_of(), pair)
    with pytest.raises(ClusterError, match=r"2 workers with 3 CPU each, .* room for 0"):
        place_encoders(config_of(cpus=3, encoders=0), [node(name, CPU=2) for name in "abc"])
    with pytest.raises(ClusterError, match=r"2 encoders with 5 CPU each: the nodes have room for 0"):
        place_encoders(config_of(cpus=1, each=5), pair)
    check_resources(config_of(resource="encoder"), {"CPU": 99, "encoder": 1}, "Ray")
    with pytest.raises(ClusterError, match="only on nodes with encoder; Ray has none"):
        check_resources(config_of(resource="encoder"), {"CPU": 99}, "Ray")


@pytest.fixture(scope="module")
def four():
    """A head without CPUs, a node with a GPU in name, two without, and one of these marked. Names by id."""
    import ray
    from ray.cluster_utils import Cluster

    keep = pytest.MonkeyPatch()
    keep.setenv("RAY_AUTH_MODE", "token")
    keep.setenv("RAY_AUTH_TOKEN", "a-token-of-this-test-0123456789abcdef")
    forget_authentication()
    small = {"object_store_memory": 80 << 20}
    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        ray.init(address=cluster.address, log_to_driver=False)
        wanted = {"gpu": {"num_gpus": 1}, "plain": {}, "marked": {"resources": {"encoder": 1}}}
        made = {name: cluster.add_node(num_cpus=4, **more, **small) for name, more in wanted.items()}
        cluster.wait_for_nodes()
        yield {member.node_id: name for name, member in made.items()}
    finally:
        ray.shutdown()
        cluster.shutdown()
        keep.undo()
        forget_authentication()


@pytest.fixture
def where(four, tiny_run, tmp_path):
    """A function: settings of the service -> names of the nodes of dealer and encoders, and if workers find room."""
    import ray

    def members(workers, **service):
        cluster = {"address": "auto", "workers": workers, "cpus_per_worker": 4, "gpus_per_worker": 0}
        config = RunConfig.model_validate(
            tiny_run | {"run": {"dir": str(tmp_path)}, "cluster": cluster, "service": {"encoders": 2, **service}}
        )
        check_resources(config, ray.cluster_resources(), "Ray")
        with data_service(open_run(config), place_encoders(config, ray.nodes())) as offer:
            names = (offer.service, f"{offer.service}-encoder-0", f"{offer.service}-encoder-1")
            asked = [ray.get_actor(name).__ray_call__.remote(_node) for name in names]
            found = [four.get(one, "head") for one in ray.get(asked, timeout=120)]
            group = ray.util.placement_group([{"CPU": 4}] * workers)
            try:
                return found, group.wait(20)
            finally:
                ray.util.remove_placement_group(group)

    return members


def _node(self):
    import ray

    return ray.get_runtime_context().get_node_id()


def test_on_a_real_ray_workers_find_room_beside_the_encoders(where):
    found, room = where(workers=2)
    assert len(set(found)) == 1 and found[0] in ("plain", "marked") and room


def test_on_a_real_ray_the_service_runs_on_nodes_with_its_resource(where):
    found, room = where(workers=2, resource="encoder")
    assert set(found) == {"marked"} and room
