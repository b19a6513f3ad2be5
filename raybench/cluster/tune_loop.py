"""Changes to Tune's loop that a sweep needs.

While no trial runs and the searcher suggests none, Tune asks it once a second for ten minutes.
Meanwhile the progress display is not updated, no deadline ends the sweep, and Ctrl-C has no effect.
This happens while a sweep waits for nodes.

Tune keeps the actors of ended trials for the next ones. They keep their CPUs, so the autoscaler
does not stop a node with an idle actor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.execution.tune_controller import TuneController

PAUSE_S = 0.1  # between two steps of the loop without events


@contextmanager
def never_blocking() -> Iterator[None]:
    """In this context, each step of the loop ends soon, whether or not there is a trial."""
    controller: Any = TuneController
    update = controller._update_trial_queue

    def update_and_go_on(self: Any, blocking: bool = False, timeout: int = 600) -> bool:
        added = bool(update(self, blocking=False))
        if blocking and not added:
            time.sleep(PAUSE_S)
        return added

    controller._update_trial_queue = update_and_go_on
    try:
        yield
    finally:
        controller._update_trial_queue = update


class Actors:
    """The actors of a sweep, from Tune's controller."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    @property
    def begun(self) -> bool:
        """Whether any actor has been placed in the cluster."""
        return bool(self._controller._actor_manager.num_live_actors)

    def release_idle(self) -> None:
        """Ends the actors that wait for a trial."""
        if self._controller._actor_cache.num_cached_objects:
            self._controller._cleanup_cached_actors(force_all=True)
