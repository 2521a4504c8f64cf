"""What Ray Train runs in each worker, and what it is given.

Ray Train's controller loads this module, and would wait 8 s for torch and transformers: they are imported in workers.
"""

import os
from pathlib import Path
from typing import Any

from dist_sft.core.errors import ClusterError


def train_loop_per_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """One rank of the run. Returns what rank 0 has to say of its end.

    Ray's dashboard and state API show the loop config, and the controller reads it. So settings, which may hold a
    secret, and what is known of the data travel as a reference to an object: loop_config["given"].
    """
    import ray
    from ray.train import get_context

    from dist_sft.cluster.heartbeat import Watchdog
    from dist_sft.run.assembly import work

    folder = loop_config["folder"]  # Ray Train starts workers elsewhere; a run file's paths are the driver's
    if not Path(folder).is_dir():
        raise ClusterError(
            "the folder that the run was started in is not there, and paths of the run file may be relative to it",
            where=f"node {os.uname().nodename}: {folder}",
            fix="start from a folder that all nodes share, or with ray job submit --working-dir",
        )
    os.chdir(folder)
    watchdog = Watchdog(loop_config["hang"], Path(loop_config["stacks"]), get_context().get_world_rank())
    settings, offer, kept = ray.get(loop_config["given"])
    return work(settings, loop_config["attempt"], offer, watchdog, kept)
