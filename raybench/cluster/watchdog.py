"""Watchdog: a thread that notices if Ray itself has died; the driver would wait forever.

Every second it checks whether this node's raylet accepts a connection and the GCS answers. If one
of them is silent for some seconds, or no trial reports for very long, it ends the sweep: it writes
the results so far, and the same command resumes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

INTERRUPTED = 130
LOOK_EVERY_S = 1.0
GONE_S = {"raylet": 1.5, "GCS": 5.0}  # without an answer; a raylet's socket answers far sooner
SLEPT_S = 5.0  # if a wait of one second takes this long, this process was suspended
ANSWER_S = 2.0


class Watchdog:
    """Calls `lost` once, with a sentence, from its own thread.

    Args:
        silent_s: longest time without a report of any trial; None for no limit.
    """

    def __init__(self, lost: Callable[[str], None], silent_s: float | None = None) -> None:
        self._lost, self._silent_s = lost, silent_s
        self._heard = time.monotonic()
        self._over = threading.Event()
        node: Any = ray._private.worker._global_node
        self._raylet = str(node.raylet_socket_name)
        worker: Any = ray._private.worker.global_worker
        self._gcs = worker.gcs_client
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def heard(self) -> None:
        """Call it when a trial reports or starts."""
        self._heard = time.monotonic()

    def gone(self) -> str | None:
        """Which part of Ray does not answer now; for an error that Ray's death may have caused."""
        for name, answers in {"raylet": self._raylet_answers, "GCS": self._gcs_answers}.items():
            if not answers():
                return f"Ray's {name} is gone"
        return None

    def _watch(self) -> None:
        looks = {"raylet": self._raylet_answers, "GCS": self._gcs_answers}
        answered, failures = dict.fromkeys(looks, time.monotonic()), dict.fromkeys(looks, 0)
        waited = time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            late = time.monotonic() - waited
            if late > SLEPT_S:  # this process was suspended: missing answers do not count
                answered = dict.fromkeys(looks, time.monotonic())
                self._heard += late
            for name, answers in looks.items():
                if answers():
                    answered[name], failures[name] = time.monotonic(), 0
                    continue
                failures[name] += 1
                # Two failures, because this process may have been suspended during the first check.
                gone = time.monotonic() - answered[name] > GONE_S[name] and failures[name] > 1
                if gone and not self._over.is_set():
                    self._lost(f"Ray's {name} is gone")
                    return
            waited = time.monotonic()
            if self._silent_s is not None and waited - self._heard > self._silent_s:
                self._lost(f"no trial has reported for {self._silent_s:g} s")
                return

    def _raylet_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_S)
            try:
                client.connect(self._raylet)
            except OSError:
                return False
        return True

    def _gcs_answers(self) -> bool:
        try:
            self._gcs.internal_kv_exists(b"raybench", None, timeout=ANSWER_S)
        except Exception:  # any error means that there was no answer
            return False
        return True


@contextmanager
def watched(command: str) -> Iterator[None]:
    """Ends this process with one line if Ray has died, also if another error shows it first."""

    def end(what: str) -> None:
        text = f"{what}; the same command starts again, or resumes from its --checkpoint"
        print(f"{command}: {text}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    with Watchdog(end) as watchdog:
        try:
            yield
        except Exception:
            if what := watchdog.gone():
                end(what)
            raise
