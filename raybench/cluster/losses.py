"""Every way in which Ray loses an actor, as the one that Tune knows.

Tune takes a RayActorError for the failure of one trial. What Ray says of an actor that its memory
monitor has ended, or whose node went away, is another RayError, for which Tune ends the whole run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError


class ActorLostError(RayActorError):
    """An actor that is gone, in the words of the error that Ray gave."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def __reduce__(self) -> tuple[Any, ...]:
        return (ActorLostError, (self.words,))

    def __str__(self) -> str:
        return self.words


@contextmanager
def every_loss_an_actors() -> Iterator[None]:
    """While it lasts, Tune hears of lost actors by `ActorLostError`."""
    manager: Any = RayActorManager
    failed = manager._actor_task_failed

    def told(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(
            exception, RayActorError | RayTaskError
        ):
            exception = ActorLostError(f"{type(exception).__name__}: {exception}")
        failed(self, tracked_actor_task, exception)

    manager._actor_task_failed = told
    try:
        yield
    finally:
        manager._actor_task_failed = failed
