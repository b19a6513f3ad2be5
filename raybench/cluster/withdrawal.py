"""A separate process that withdraws a sweep's demand if the sweep's process is killed.

    driver ── pipe ──▶ this process      "done": the driver has withdrawn the demand itself
                       │                 closed: the driver has ended, for whatever reason
                       ╰──▶ GCS: an empty request

Ray keeps a request for resources after the process that made it has ended, and the autoscaler would
keep the nodes. `ray job stop` kills a job three seconds after its SIGTERM.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

DONE = b"done"


class Withdrawal:
    """Create it before the first request, and `close` it after withdrawing the demand."""

    def __init__(self, gcs_address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, gcs_address],
            stdin=subprocess.PIPE,
            # A signal to the driver's process group must not reach this process.
            start_new_session=True,
        )

    def close(self, *, withdrawn: bool) -> None:
        assert self._process.stdin is not None
        if withdrawn:
            self._process.stdin.write(DONE)
        self._process.stdin.close()


def withdraw(gcs_address: str) -> None:
    """Withdraws the demand in the cluster with this GCS."""
    # Imported here, so that this process stays small until it is needed.
    import ray._raylet
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.autoscaler.v2.sdk import request_cluster_resources
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    raylet: Any = ray._raylet
    client = raylet.GcsClient(address=gcs_address)
    if is_autoscaler_v2(gcs_client=client):
        request_cluster_resources(gcs_address, [])
    else:
        client.internal_kv_put(AUTOSCALER_RESOURCE_REQUEST_CHANNEL, b"[]", True, None)


if __name__ == "__main__":
    if sys.stdin.buffer.read() != DONE:
        withdraw(sys.argv[1])
