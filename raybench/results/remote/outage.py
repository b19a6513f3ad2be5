"""Outage: a store that does not answer for a while, and the messages about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from raybench.results.remote.explained import StoreError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Outage:
    """Counts the time since the store last answered; thread-safe.

    Args:
        folder: folder of the results meanwhile.
        patience_s: longest outage before the sweep must end.
        say: prints a line.
    """

    def __init__(
        self, address: str, folder: Path, patience_s: float, say: Callable[[str], None]
    ) -> None:
        self._address, self._folder, self._say = address, folder, say
        self._patience_s = patience_s
        self._since: float | None = None
        self._pause = FIRST_PAUSE_S
        self._over: StoreError | None = None
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether it has lasted too long."""
        return self._over is not None

    def check(self) -> None:
        """Raises StoreError if it has lasted too long."""
        if self._over is not None:
            raise self._over

    def worked(self) -> None:
        with self._lock:
            if self._since is None:
                return
            lasted = time.monotonic() - self._since
            self._since, self._pause = None, FIRST_PAUSE_S
        self._say(f"{self._address} answers again, after {lasted:.0f} s")

    def failed(self, error: Exception) -> float:
        """Records an error; returns the seconds until the next try."""
        with self._lock:
            now, first = time.monotonic(), self._since is None
            since = self._since = now if self._since is None else self._since
            pause, self._pause = self._pause, min(LONGEST_PAUSE_S, 2 * self._pause)
            if now - since >= self._patience_s:
                self._over = self.unfinished(error)
        if first:
            self._say(
                f"{_text(error)}; the sweep continues in {self._folder}, for "
                f"{self._patience_s / 60:.0f} minutes at most"
            )
        return min(pause, max(0.1, since + self._patience_s - now))

    def unfinished(self, error: Exception) -> StoreError:
        """The error of a run that ends before everything is copied."""
        return StoreError(
            f"{_text(error)}; the results are in {self._folder}, and the same command on this "
            "machine copies the rest and resumes"
        )


def _text(error: Exception) -> str:
    return " ".join(str(error).split())
