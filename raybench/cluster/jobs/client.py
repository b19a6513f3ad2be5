"""The job server of a cluster: connecting with its token, and requests with a deadline."""

from __future__ import annotations

import logging
import os
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raybench.cluster.joining import require_answer

CONNECT_S, ANSWER_S = 10.0, 60.0
ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own variable; it has priority over RAY_ADDRESS
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
TUNNEL = "ssh -L 8265:localhost:8265 HEAD"


class Client(JobSubmissionClient):
    """Ray's client with deadlines: its requests would wait forever for a lost head."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", (CONNECT_S, ANSWER_S))
        return super()._do_request(*arguments, **options)

    def open_to_all(self) -> bool:
        """Whether the job server accepts requests without a token."""
        url = f"{self._address}/api/jobs/raybench-none"
        timeout = (CONNECT_S, ANSWER_S)
        # `auth` keeps requests from adding credentials from .netrc.
        answer = requests.get(url, timeout=timeout, verify=self._verify, auth=_no_credentials)
        return answer.status_code not in (401, 403)

    def download(self, node: str, file: str, deadline_s: float) -> requests.Response:
        """A file in the log folder of a node's session, as a stream of bytes."""
        query = {"node_id": node, "filename": file, "lines": "-1", "timeout": int(deadline_s)}
        return self._do_request(
            "GET",
            "/api/v0/logs/file",
            params=query,
            stream=True,
            timeout=(CONNECT_S, deadline_s),
        )


def connect(address: str | None) -> Client:
    """The job server at an address such as http://HEAD:8265.

    Args:
        address: None for RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else this machine.

    Raises:
        ValueError: it does not answer, or refuses the token; with advice.
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None:
        os.environ[ADDRESS] = address if "://" in address else f"http://{address}"
    where = os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS") or "this machine"
    if not os.environ.get(ADDRESS) and os.environ.get("RAY_ADDRESS"):
        require_answer(os.environ["RAY_ADDRESS"])
    try:
        return Client()
    except AuthenticationError as error:
        raise ValueError(unauthorized(where, error)) from error
    except (ConnectionError, requests.RequestException, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no job server answers at {where}. Is the head up? Its job server listens on "
            f"localhost:8265: open a tunnel, `{TUNNEL}`, and use --address http://localhost:8265"
        ) from error


def unauthorized(where: str, error: Exception) -> str:
    """Advice for a request that was refused because of its token."""
    wrong = "refuses your token" if "failed" in str(error) else "accepts no job without a token"
    return (
        f"the cluster at {where} {wrong}: copy ~/.ray/auth_token of the head to this machine, or "
        "set RAY_AUTH_TOKEN_PATH to a copy"
    )


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
