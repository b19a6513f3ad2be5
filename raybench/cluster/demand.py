"""Demand: tells Ray's autoscaler how much room the sweep could use.

    tell(wanted, held)  ──▶ request_resources: so many slots in all, those that there are included
    withdraw()          ──▶ nothing more is asked for, and idle nodes are stopped after a while

A request stays until the next one, also after the end of the process that has made it, so it is
withdrawn however the sweep ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from ray.autoscaler.sdk import request_resources

from raybench.cluster import live_nodes
from raybench.cluster.asking import Asking
from raybench.cluster.fit import Needs

AGAIN_S = 60.0  # another sweep in this cluster may have asked instead
ANSWER_S = 2.0  # between two looks at the autoscaler's answer
LEAVE_S = 5.0


class Demand:
    """The demand of one sweep, withdrawn at the end of the context.

    Args:
        needs: what a trial takes.
        here: whether Ray runs on this machine alone and has no autoscaler.
    """

    def __init__(
        self, needs: Needs, *, here: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._needs, self._here, self._clock = needs, here, clock
        self._asking = Asking()
        self._said: int | None = None
        self._said_at = self._looked_at = -float("inf")
        self._version: int | None = None  # of the cluster's state when it was last said

    def __enter__(self) -> Demand:
        return self

    def __exit__(self, *exception: object) -> None:
        self.withdraw()

    @property
    def hopeless(self) -> bool:
        """Whether the autoscaler has said that it has no room for a single trial."""
        return self._asking.hopeless

    def tell(self, wanted: int, held: int) -> None:
        """Asks for room for `wanted` trials, of which there is room for `held`."""
        now = self._clock()
        if self._here or now - self._looked_at < ANSWER_S:
            return
        self._looked_at = now
        self._hear()
        if self._version is not None and wanted > held:
            return  # it has not looked at the last request
        slots = self._asking.next(wanted, held)
        if slots != self._said or now - self._said_at > AGAIN_S:
            request_resources(bundles=self._needs.bundles(slots))
            self._said, self._said_at = slots, now
            refuses = live_nodes.refused_bundles() is not None
            self._version = live_nodes.state_version() if refuses else None

    def withdraw(self) -> None:
        """Asks for nothing more; gives up after `LEAVE_S`, since Ray may be gone."""
        if self._said is None:
            return

        def ask_for_nothing() -> None:
            with contextlib.suppress(Exception):
                request_resources(bundles=[])

        self._said = None
        asking = threading.Thread(target=ask_for_nothing, daemon=True)
        asking.start()
        asking.join(LEAVE_S)

    def _hear(self) -> None:
        """Takes the autoscaler's answer to the last request, if it has looked at it."""
        if self._version is None or (answer := live_nodes.refused_bundles()) is None:
            return
        seen, bundles = answer
        refused = bundles > 0 and bundles == len(self._needs.bundles(self._said or 0))
        if refused or seen > self._version + 1:
            self._asking.answered(refused)
            self._version = None
