"""Demand: requests the resources that the sweep could use from Ray's autoscaler.

    tell(wanted, held)  ──▶ request_resources: the number of slots, including the existing ones
    withdraw()          ──▶ requests nothing, so that idle nodes are stopped after a while

A request outlives the process that made it, until the next request. So it is withdrawn however the
sweep ends: here, or by a separate process if this one is killed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import ray
from ray.autoscaler.sdk import request_resources

from raybench.cluster import live_nodes
from raybench.cluster.asking import Asking
from raybench.cluster.fit import Needs
from raybench.cluster.withdrawal import Withdrawal

AGAIN_S = 60.0  # repeats the request, which another sweep may have replaced
ANSWER_S = 2.0  # between two checks of the autoscaler's answer
LEAVE_S = 5.0


class Demand:
    """The demand of one sweep, withdrawn at the end of the context.

    Args:
        needs: resources of a trial.
        here: whether Ray runs only on this machine, without an autoscaler.
    """

    def __init__(
        self, needs: Needs, *, here: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._needs, self._here, self._clock = needs, here, clock
        self._asking = Asking()
        self._said: int | None = None
        self._said_at = self._looked_at = -float("inf")
        self._guard: Withdrawal | None = None
        self._version: int | None = None  # of the cluster's state at the last request

    def __enter__(self) -> Demand:
        if not self._here:
            self._guard = Withdrawal(ray.get_runtime_context().gcs_address)
        return self

    def __exit__(self, *exception: object) -> None:
        withdrawn = self.withdraw()
        if self._guard is not None:
            self._guard.close(withdrawn=withdrawn)

    @property
    def hopeless(self) -> bool:
        """Whether the autoscaler has refused the resources of a single trial."""
        return self._asking.hopeless

    @property
    def due(self) -> bool:
        """Whether it is time to `tell` again."""
        return not self._here and self._clock() - self._looked_at >= ANSWER_S

    def tell(self, wanted: int, held: int) -> None:
        """Requests the resources of `wanted` trials, of which `held` already fit."""
        if not self.due:
            return
        self._looked_at = now = self._clock()
        self._hear()
        if self._version is not None and wanted > held:
            return  # the autoscaler has not processed the last request
        slots = self._asking.next(wanted, held)
        if slots != self._said or now - self._said_at > AGAIN_S:
            request_resources(bundles=self._needs.bundles(slots))
            self._said, self._said_at = slots, now
            refuses = live_nodes.refused_bundles() is not None
            self._version = live_nodes.state_version() if refuses else None

    def withdraw(self) -> bool:
        """Withdraws the request; False if Ray has not answered within `LEAVE_S`."""
        if self._said is None:
            return True
        answered = threading.Event()

        def ask_for_nothing() -> None:
            with contextlib.suppress(Exception):
                request_resources(bundles=[])
                answered.set()

        self._said = None
        threading.Thread(target=ask_for_nothing, daemon=True).start()
        return answered.wait(LEAVE_S)

    def _hear(self) -> None:
        """Records the autoscaler's answer to the last request, if it has processed it."""
        if self._version is None or (answer := live_nodes.refused_bundles()) is None:
            return
        seen, bundles = answer
        refused = bundles > 0 and bundles == len(self._needs.bundles(self._said or 0))
        if refused or seen > self._version + 1:
            self._asking.answered(refused)
            self._version = None
