"""Converts every error by which Ray reports a lost actor into the one that Tune handles.

Tune treats a RayActorError as the failure of one trial. If the memory monitor kills an actor, or
its node is lost, Ray raises another RayError, and Tune ends the whole run. Ray's own
ActorDiedError cannot be unpickled, so its text, which mentions a lost node, would be lost as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError


class ActorLostError(RayActorError):
    """An actor was lost; the text is that of Ray's own error."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def __reduce__(self) -> tuple[Any, ...]:
        return (ActorLostError, (self.words,))

    def __str__(self) -> str:
        return self.words


@contextmanager
def every_loss_an_actors() -> Iterator[None]:
    """In this context, Tune gets an `ActorLostError` for every lost actor."""
    manager: Any = RayActorManager
    failed = manager._actor_task_failed

    def task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, RayTaskError):
            exception = ActorLostError(f"{type(exception).__name__}: {exception}")
        failed(self, tracked_actor_task, exception)

    manager._actor_task_failed = task_failed
    try:
        yield
    finally:
        manager._actor_task_failed = failed
