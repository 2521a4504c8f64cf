"""On a real Ray, members are killed and frozen at random: the same steps arrive, and nothing is left behind."""

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray._private import internal_api

from dist_sft.data.ledger import Ledger
from dist_sft.data.packing import Packer
from dist_sft.service.client import StepClient
from dist_sft.service.members import PATIENCE as PATIENCE_OF_A_LINK
from dist_sft.service.members import RayLink, start
from tests.service import chats
from tests.service.members import on_ranks

STEPS, WORLD, ENCODERS = 14, 3, 2
STALL = 1.5
"""Seconds without an answer after which a member is replaced."""
PATIENCE = 90
"""Seconds that no step may take, whatever dies; Ray alone needs six to end a frozen process, and two to start one."""
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster():
    """A local Ray of its own, with room for the members."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


def here():
    """The only node, for each encoder."""
    return [ray.get_runtime_context().get_node_id()] * ENCODERS


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray_chats")
    feeds = {"train": chats.feed(chats.write(folder), STEPS, cache=folder / "cache")}
    dealer = Packer(1, 333, quadratic=1e-3)
    service = start("kills", feeds, dealer, chats.CONTEXT, here(), 0.5, {}, 1 << 22, STALL, 8 * WORLD)
    yield service
    service.stop()


def pid(actor):
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)


def take(session, pause):
    """All shares of all ranks, each rank on a thread, and the longest that one waited for a share (seconds)."""
    waits = [0.0]

    def rank_(rank):
        link = RayLink("kills", rank == 0, STALL, started=time.time())
        shares = StepClient(link, "train", STEPS, session, WORLD, rank, 3, Ledger(), 1.0).shares(0)
        taken = []
        for _ in range(STEPS):
            asked = time.monotonic()
            taken.append(next(shares))
            waits.append(time.monotonic() - asked)
            time.sleep(pause)
        shares.close()
        return taken

    return on_ranks(WORLD, rank_, PATIENCE * 3), max(waits)


def attack(service, dice, over):
    """Kill or freeze members at random moments, until the event is set."""
    victims = [service.dealer, *service.encoders]
    for _ in range(dice.randint(1, 3)):
        if over.wait(dice.random() * 1.2):
            return
        with suppress(ray.exceptions.RayError, ProcessLookupError):
            os.kill(pid(dice.choice(victims)), dice.choice([signal.SIGKILL, signal.SIGSTOP]))


def schedules():
    return [pytest.param(seed, marks=pytest.mark.soak) if seed >= 10 else seed for seed in range(100)]


@pytest.mark.parametrize("seed", schedules())
def test_steps_survive_kills_and_freezes(service, seed):
    over = threading.Event()
    attacker = threading.Thread(target=attack, args=(service, random.Random(seed), over))
    attacker.start()
    try:
        parts, longest = take(session=seed + 1, pause=0.1)
    finally:
        over.set()
        attacker.join()
    found = chats.delivered(parts)
    assert [digest for _, (digest, _) in sorted(found.items())] == GOLDEN["together"]
    assert longest < PATIENCE


def test_ranks_that_start_late_do_not_give_a_frozen_dealer_the_time_that_a_new_one_gets(service):
    """They are watched from their first step on, and would be started again, and so on, before they replaced it."""
    stall = 3.0
    os.kill(pid(service.dealer), signal.SIGSTOP)
    asked = time.monotonic()
    link = RayLink("kills", True, stall, started=time.time() - 60)
    shares = StepClient(link, "train", STEPS, 1000, 1, 0, 1, Ledger(), 1.0).shares(0)
    assert next(shares).step == 0
    shares.close()
    assert time.monotonic() - asked < PATIENCE_OF_A_LINK * stall


def alive():
    return {name["name"] for name in ray.util.list_named_actors(all_namespaces=True)}


def objects():
    """Bytes in Ray's object store."""
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return internal_api.get_memory_info_reply(state).store_stats.object_store_bytes_used


def test_nothing_is_left_of_a_service_that_stopped(cluster, tmp_path):
    before, held = alive(), objects()
    feeds = {"train": chats.feed(chats.write(tmp_path), STEPS)}
    service = start("short", feeds, Packer(1, 333), chats.CONTEXT, here(), 0.5, {}, 1 << 22, STALL, 8)
    link = RayLink("short", True, 30, service.started)
    shares = list(StepClient(link, "train", STEPS, 1, 1, 0, 3, Ledger(), 1.0).shares(0))
    assert len(shares) == STEPS
    deadline = time.monotonic() + 30  # the last word that a step was taken is on its way
    while ray.get(service.dealer.figures.remote())["steps"] and time.monotonic() < deadline:
        time.sleep(0.1)
    figures = ray.get(service.dealer.figures.remote())
    assert (figures["in_flight"], figures["steps"]) == (0, 0)
    pids = [pid(actor) for actor in (service.dealer, *service.encoders)]
    service.stop()
    del service
    deadline = time.monotonic() + 60

    def left():
        return alive() - before or any(os.path.exists(f"/proc/{p}") for p in pids) or objects() > held

    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive() == before
    assert objects() <= held
    assert not any(os.path.exists(f"/proc/{p}") for p in pids)
