"""How a Ray of the run's own is started: so that a signal to the run reaches the run, and it ends what it started.

Ray would replace the handler of SIGTERM twice, from Python and from C++, by ones that end in an abort. And its
processes would be of the run's process group: Ctrl-C, a terminal that closes or a scheduler that ends a group would end
them under the run, which then dies with them before it can say anything. In sessions of their own they end with it,
whose parent's death they watch. Ray would also show the whole command line, with what overrides hold, to whoever may
list a cluster's jobs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from dist_sft.core.redact import scrubbed
from dist_sft.core.signals import blocked, unblocked


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside the block Ray starts processes in sessions of their own, sets no handler of SIGTERM, shows no secret."""
    from ray._private import services as of_services
    from ray._private import utils as of_utils

    services: Any = of_services
    utils: Any = of_utils
    popen, handle, entrypoint = (
        of_services.ConsolePopen,
        of_utils.set_sigterm_handler,
        of_utils.get_entrypoint_name,
    )

    class Popen(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["preexec_fn"] = unblocked(options.get("preexec_fn"))
            super().__init__(*arguments, **{"start_new_session": True} | options)

    services.ConsolePopen, utils.set_sigterm_handler = Popen, lambda _: None
    utils.get_entrypoint_name = lambda: scrubbed(entrypoint())
    try:
        with blocked():
            yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler = popen, handle
        utils.get_entrypoint_name = entrypoint
