"""Which failures a new start can mend.

Ray Train starts the ranks again after any exception. What the user must mend would fail the same way each time; a
fault of the cluster, or of storage that may come back, need not.
"""

from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from dist_sft.core.errors import ClusterError, Lines, SftError, StorageOutage


class EndOnErrors(UserCallback):
    """Runs in Ray Train's controller: an error that the user must mend ends the run."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        found = [error for failure in worker_exceptions.values() for error in chain(failure)]
        if any(isinstance(error, RayActorError) for error in found):
            return  # a rank died, and the others failed for want of it
        for error in found:
            if isinstance(error, SftError) and not isinstance(error, (ClusterError, StorageOutage)):
                raise error


def chain(error: BaseException) -> list[BaseException]:
    """An error and all that is wrapped in it, outermost first."""
    found: list[BaseException] = [error]
    for current in found:
        inner = [
            *getattr(current, "worker_failures", {}).values(),
            getattr(current, "controller_failure", None),
            getattr(current, "cause", None),
            getattr(current, "_base_exc", None),
            current.__cause__,
        ]
        found += [e for e in inner if isinstance(e, BaseException) and e not in found]
    return found


def as_sft_error(error: BaseException, stepped: bool = True) -> SftError:
    """The user's error inside what Ray wraps around it; a worker that died without one is an error of the cluster.

    stepped: whether a step was done since this start. What fails before the first one most likely fails there again.
    """
    found = chain(error)
    for inner in found:
        if isinstance(inner, SftError):
            return inner
    again = stepped or any(isinstance(inner, RayActorError) for inner in found)
    return ClusterError(
        Lines(f"a worker failed: {error}"),
        fix="the newest whole checkpoint is untouched: run the same command again to go on from it"
        if again
        else "no step was done since this start, so that another start would most likely end here, too: look for the "
        "first traceback above; checkpoints are as they were",
    )
