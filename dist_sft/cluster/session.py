"""A connection to Ray: to a cluster, or to a Ray of this run's own."""

import logging
import os
import socket

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError
from dist_sft.run.resources import is_local, ray_address


def connect(config: RunConfig) -> None:
    """Join the cluster that the run file or RAY_ADDRESS names, or start a local Ray."""
    import ray

    address = ray_address(config)
    if address is not None:
        _knock(address)
    try:
        ray.init(
            address=address or "local",  # not whichever cluster `ray start` has left its address of on this machine
            num_cpus=os.cpu_count() if is_local(config) else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address is None else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray cannot be reached: {str(error).splitlines()[0]}",
            where=address or "local Ray",
            fix="check cluster.address and RAY_ADDRESS, and RAY_AUTH_MODE=token with the cluster's token where it asks "
            "for one; or unset the address to start a local Ray",
        ) from error


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
