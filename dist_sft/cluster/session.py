"""A connection to Ray: to a cluster, or to a Ray of this run's own."""

import logging
import os
import socket

from dist_sft.cluster.auto_address import started_here
from dist_sft.cluster.local_ray import apart
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError
from dist_sft.core.signals import whole
from dist_sft.run.resources import ray_address

log = logging.getLogger(__name__)


def connect(config: RunConfig) -> None:
    """Join the cluster that the run file or RAY_ADDRESS names, or start a local Ray."""
    import ray

    address = ray_address(config)
    if address == "auto" and (address := os.environ.get("RAY_ADDRESS") or "auto") == "auto":
        address = started_here()
    if address is not None:
        _knock(address)
    log.info("starting Ray on this machine" if address is None else f"joining the Ray cluster at {address}")
    try:
        with whole(), apart():  # a signal that cut it in two would leave processes behind
            ray.init(
                address=address or "local",  # not whichever cluster `ray start` has left its address of here
                num_cpus=os.cpu_count() if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address is None else None,
            )
    except Exception as error:  # Ray raises a plain Exception where its processes are late
        raise _not_reached(address, (str(error).splitlines() or [type(error).__name__])[0]) from error


def _not_reached(address: str | None, said: str) -> ClusterError:
    if address is None:
        return ClusterError(
            f"Ray did not start on this machine: {said}",
            where="local Ray",
            fix="run the same command again when the machine is less busy; if it stays so, look at the newest session "
            "in /tmp/ray (or RAY_TMPDIR), at free memory and at the room on that disk",
        )
    return ClusterError(
        f"Ray cannot be reached: {said}",
        where=address,
        fix="check cluster.address and RAY_ADDRESS, and RAY_AUTH_MODE=token with the cluster's token where it asks "
        "for one; or unset the address to start a local Ray",
    )


def _knock(address: str) -> None:
    """Raise ClusterError where nobody listens: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers: {getattr(error, 'strerror', None) or error}",
            where=address,
            fix="check cluster.address and RAY_ADDRESS (host:6379, or ray://host:10001), or unset both to start a "
            "local Ray",
        ) from error


def quiet(config: RunConfig) -> None:
    """Ray Train's controller tells at length what our own lines say; and it waits for long where we do not."""
    for name, value in (
        ("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(config.cluster.hang)),
        ("RAY_TRAIN_ENABLE_PRINT_PATCH", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"),
        ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5"),
    ):
        os.environ.setdefault(name, value)
