"""`dist-sft preflight`: a look at every node of the cluster."""

from dist_sft.cluster.preflight.run import Report, preflight
from dist_sft.cluster.session import connect, quiet
from dist_sft.run import folder as run_folder
from dist_sft.run.opened import OpenedRun


def look_at_cluster(run: OpenedRun) -> Report:
    """Join the cluster, or start a local Ray, and look at all nodes that could hold workers. Raises ClusterError."""
    import ray

    config = run.config
    quiet(config)
    run_dir = run_folder.locate(config)
    started = not ray.is_initialized()
    if started:
        connect(config)
    try:
        return preflight(run, run_dir)
    finally:
        if started:
            ray.shutdown()
