"""Jobs of a Ray cluster, through the HTTP address of its dashboard.

Whatever keeps them out of reach is a ClusterError that says which it is: nobody listens, no Ray dashboard, no token, a
wrong token. Only what may pass by itself is an `Unreachable`.
"""

import contextlib
import logging
import os
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dist_sft.core.errors import ClusterError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where Ray, too, looks for the address of a dashboard."""

CONNECT, ANSWER = 10.0, 60.0
"""Seconds until a request is given up: to be let in, and to be answered."""

LIBRARIES = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
"""To their loggers each connection that ends is news."""

TOKEN_FIX = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


class Unreachable(ClusterError):
    """No answer now; perhaps later."""


@dataclass(frozen=True)
class Job:
    """What the cluster says of a job.

    status     PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED
    run        run.name of its run file; "" where another program submitted it
    exit_code  of its command; None before the end, or where it was not even started
    message    of the cluster, for people
    """

    id: str
    status: str
    run: str
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        return JobStatus(self.status).is_terminal()

    @property
    def code(self) -> int:
        """Exit code for whoever waited for it: 0 only where the job ran to its end and succeeded."""
        if self.status == "SUCCEEDED":
            return 0
        return self.exit_code if self.exit_code and 0 < self.exit_code < 256 else 1

    @property
    def reason(self) -> str:
        """Why it is as it is, without the end of its log, which Ray adds."""
        said = self.message.partition(", last available logs")[0]
        return said if self.exit_code != 127 else f"{said}: is dist-sft installed on the head node, and on its PATH?"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`. Each method may raise ClusterError."""

    def __init__(self, address: str) -> None:
        self.address = address
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._reaching(), _no_other_address():
            self._client = _Client(address)

    def all(self) -> list[Job]:
        with self._reaching():
            return [_job(details) for details in self._client.list_jobs() if details.submission_id]

    def get(self, job_id: str) -> Job:
        with self._reaching(job_id):
            return _job(self._client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """All that it has written so far."""
        with self._reaching(job_id):
            return self._client.get_job_logs(job_id)

    async def tail(self, job_id: str) -> AsyncGenerator[str, None]:
        """Its log from the beginning, and what is added, as it comes; ends some time after the job."""
        with self._reaching(job_id):
            async for text in self._client.tail_job_logs(job_id):
                yield text

    def stop(self, job_id: str) -> bool:
        """Ask it to end. Returns whether it was running."""
        with self._reaching(job_id):
            return self._client.stop_job(job_id)

    def submit(
        self, job_id: str, command: str, package: Path, runtime_env: dict[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Start `command` in a folder that holds the content of `package`, a .zip."""
        with self._reaching(job_id):
            self._client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env=runtime_env | {"working_dir": str(package)},
                metadata=dict(metadata),
            )

    @contextlib.contextmanager
    def _reaching(self, job_id: str = "") -> Iterator[None]:
        """What Ray's client raises, as what it means."""
        try:
            yield
        except AuthenticationError as error:
            raise self._refused(str(error)) from error
        except (aiohttp.WSServerHandshakeError, RuntimeError) as error:
            raise self._failed(error, job_id) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._silent(error) from error
        except (ValueError, KeyError) as error:  # no JSON, or JSON of someone else
            raise self._not_ray() from error
        except OSError as error:  # requests' errors are
            if getattr(getattr(error, "response", None), "status_code", 0):
                raise self._not_ray() from error
            raise self._silent(error) from error

    def _refused(self, said: str) -> ClusterError:
        if said.startswith("Authentication required"):
            return ClusterError("the cluster asks for a token, and none was sent", where=self.address, fix=TOKEN_FIX)
        if said.startswith("Authentication failed"):
            what = "the cluster does not accept the token"
            return ClusterError(what, where=self.address, fix="get the token of this cluster; " + TOKEN_FIX)
        return ClusterError(f"no token: {said.partition('. ')[0]}", where="RAY_AUTH_MODE=token", fix=TOKEN_FIX)

    def _failed(self, error: Exception, job_id: str) -> ClusterError:
        status = getattr(error, "status", None) or _status(str(error))
        if "already exists" in str(error):
            fix = "look at it with dist-sft job status, and submit again when it has ended"
            return ClusterError("someone else submitted this job at the same moment", where=job_id, fix=fix)
        if status in (401, 403):
            return self._refused("Authentication required" if status == 401 else "Authentication failed")
        if status == 404 and job_id:
            return ClusterError(
                f"the cluster knows no job '{job_id}'",
                where=self.address,
                fix="check the id; a cluster that was started anew has forgotten its jobs: submit the run again, and "
                "it goes on from its newest checkpoint",
            )
        if status == 404 or "Version check" in str(error):
            return self._not_ray()
        return Unreachable(f"the cluster cannot answer: {_last_line(str(error))}", where=self.address)

    def _silent(self, error: Exception) -> ClusterError:
        if "BadStatusLine" in str(error.__context__):  # words, but not of HTTP
            return self._not_ray()
        return Unreachable(
            "nobody answers",
            where=self.address,
            fix="check --address: the dashboard of the head node, http://HEAD:8265, reachable from here (or through a "
            "tunnel: kubectl port-forward, ssh -L)",
        )

    def _not_ray(self) -> ClusterError:
        return ClusterError(
            "something answers here, but not the dashboard of a Ray cluster",
            where=self.address,
            fix="give the head's dashboard, http://HEAD:8265; 6379 and 10001 are other ports of Ray",
        )


class _Client(JobSubmissionClient):
    """Ray's client, which would wait for ever for an answer."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=(CONNECT, ANSWER), **options)


def jobs_at(given: str | None) -> Jobs:
    """The jobs of the cluster that --address or a variable names. Raises ClusterError."""
    return Jobs(dashboard_address(given))


def dashboard_address(given: str | None) -> str:
    """The address of the dashboard that is meant. Raises ClusterError where none is, or where it can be none."""
    named = [("--address", given), *((name, os.environ.get(name)) for name in ADDRESS_VARIABLES)]
    where, address = next(((where, text) for where, text in named if text), ("--address", ""))
    fix = "give the dashboard of the head node: --address http://HEAD:8265"
    if not address:
        raise ClusterError("no cluster is named", where=where, fix=f"{fix}, or RAY_API_SERVER_ADDRESS")
    if "://" not in address and re.fullmatch(r"[^\s/]+:\d+", address):
        address = f"http://{address}"
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", address):
        raise ClusterError(f"'{address}' is no address of a dashboard", where=where, fix=fix)
    return address.rstrip("/")


@contextlib.contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray's client prefers what these variables say to the address that it is given."""
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _job(details: JobDetails) -> Job:
    return Job(
        id=details.submission_id or "",
        status=details.status.value,
        run=(details.metadata or {}).get("run", ""),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _status(text: str) -> int | None:
    """Of "Request failed with status code 404: ..."."""
    found = re.search(r"status code (\d{3})", text)
    return int(found[1]) if found else None


def _last_line(text: str) -> str:
    """Of a traceback of the server's: what it is about."""
    return text.rstrip(" .\n").rpartition("\n")[2]
