"""What `dist-sft rayjob` says beside the manifest: whether the pods have the main memory that the plan wants.

RunConfig, the model's config.json -> a sentence.   No row and no weight is read, and nobody is contacted.
"""

import math

from dist_sft.core.errors import ModelError
from dist_sft.kubernetes.shape import shape
from dist_sft.model.headers import config_file
from dist_sft.model.pretrained import Pretrained
from dist_sft.run.opened import OpenedRun


def short_of_memory(run: OpenedRun) -> str | None:
    """What a worker pod lacks and which setting gives it; None where it has enough, and where nobody can tell here:
    the model is not on this machine, or the run is one on CPU, which `plan` knows nothing about.

    Raises:
        ConfigError: the DeepSpeed settings do not go with the workers.
    """
    config = run.config
    settings, here = config.kubernetes, config_file(config.model)
    if settings is None or here is None or config.cluster.gpus_per_worker == 0:
        return None
    from dist_sft.commands.planning import Machine  # transformers: seconds, for which most manifests need not wait
    from dist_sft.commands.planning.plan import main_memory
    from dist_sft.core.units import gib

    try:
        architecture = Pretrained(
            config.model.model_copy(update={"path": str(here.parent)}), run.model.cache
        ).architecture
    except ModelError:
        return None
    size = shape(config, settings)
    wanted = main_memory(run, architecture, Machine.of(size.pods, size.ranks, None, None, 1.0)).total
    there = size.worker.memory << 20
    if wanted <= there:
        return None
    least = math.ceil((wanted / 2**20 - size.worker.shared_memory) / size.ranks / 1024)
    return (
        f"a worker pod has {gib(there)} of memory, and the plan wants {gib(wanted)} of main memory on its node, beside "
        f"what the processes themselves take: set kubernetes.worker.memory, which counts for each of a pod's "
        f"{size.ranks} workers, to {least}Gi or more (dist-sft plan says what for)"
    )
