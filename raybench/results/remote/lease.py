"""Lease: the single writer at an address. It replaces the lock file, which is local to a machine.

    .state/lease/000007-3f0c9a11      renewed every few seconds; stale after a minute without
                                      renewal, by the store's clock

A writer that finds no fresh lease puts its own and lists again. If two do so at once, at least one
of them sees the other's lease and withdraws, provided that the store's listings are consistent. The
generation grows with each writer: one that was suspended for more than a minute finds a later
generation at its next renewal, and ends.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raybench.results.remote import segments
from raybench.results.remote.explained import NoAnswer, StoreError
from raybench.results.remote.object_store import ObjectStore, Stored

FOLDER, CLOCK = ".state/lease", ".state/clock"
STALE_S, RENEW_S = 60.0, 5.0
MARGIN = 0.8  # the owner stops writing after this share of the time until it is stale
NAME = re.compile(rf"{re.escape(FOLDER)}/(\d{{6}})-[0-9a-f]{{8}}")


class LeaseLost(OSError):
    """Another process writes at the address now."""


class Lease:
    """The right to write at an address, renewed by a thread until `release`.

    Args:
        wait_s: how long to wait for another writer that is alive.
        machine: id of this machine; leases of its dead processes need not become stale.

    Raises:
        ValueError: another process writes there.
        StoreError: the store refuses or does not answer.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        wait_s: float = 0.0,
        stale_s: float = STALE_S,
        renew_s: float = RENEW_S,
        machine: str = "",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._store, self._stale_s, self._renew_s = store, stale_s, renew_s
        self._machine, self._say = machine or this_machine(), say
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self.lost: LeaseLost | None = None
        self.generation = 0
        self._key, self._renewed, self._renewals = "", 0.0, 0
        self._dead: set[str] = set()
        """Leases that were observed to be stale, because not every store has a clock."""
        self._acquire(wait_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raises LeaseLost, or NoAnswer if it could not be renewed for too long."""
        if self.lost is not None:
            raise self.lost
        if _now() - self._renewed > MARGIN * self._stale_s:
            raise NoAnswer(f"{self._store.address}: its lease could not be renewed")

    def release(self) -> None:
        """Deletes the lease, so that the next writer need not wait."""
        self._ended.set()
        self._thread.join(timeout=30.0)
        if self.lost is None:
            self._store.delete(self._key)

    # --- Acquiring ------------------------------------------------------------------------------

    def _acquire(self, wait_s: float) -> None:
        end, announced = time.monotonic() + wait_s, False
        while (other := self._tried()) is not None:
            key, age = other
            holder = self._holder(key)
            if holder.get("machine") == self._machine and not _lives(holder):
                self._store.delete(key)
                continue
            if not announced:
                self._say(
                    f"{_named(holder)} wrote at {self._store.address} {max(0.0, age):.0f} s ago; "
                    f"waiting for its end, or {self._stale_s - age:.0f} s more"
                )
                announced = True
            self._watch(key, age, holder, end)
            time.sleep(random.uniform(0.0, 0.2))

    def _tried(self) -> tuple[str, float] | None:
        """Tries to put the lease; returns another writer's fresh lease and its age, or None.

        Raises:
            StoreError: the store refuses or does not answer.
        """
        keys = self._store.listing(".state")
        before = {key: one for key, one in keys.items() if NAME.fullmatch(key)}
        # Checks before putting: the lease of a process that is killed here would end the writer.
        if before and (other := self._fresh(before, self._clock())) is not None:
            return other
        taken = [int(found[1]) for key in before if (found := NAME.fullmatch(key))]
        self.generation = 1 + max([segments.generation_in(keys), *taken])
        self._key = f"{FOLDER}/{self.generation:06d}-{uuid.uuid4().hex[:8]}"
        put_at = _now()
        self._put()
        leases = {k: one for k, one in self._store.listing(FOLDER).items() if NAME.fullmatch(k)}
        if self._key not in leases:
            raise StoreError(f"{self._store.address}: a new object is missing in its listing")
        if (other := self._fresh(leases, leases.pop(self._key).when)) is not None:
            self._store.delete(self._key)
            return other
        for key in leases:
            self._store.delete(key)
        self._renewed = put_at
        return None

    def _fresh(self, leases: dict[str, Stored], now: float) -> tuple[str, float] | None:
        """The most recently renewed lease, and its age; None if all are stale."""
        ages = {key: now - one.when for key, one in leases.items() if key not in self._dead}
        fresh = {key: age for key, age in ages.items() if age < self._stale_s}
        return min(fresh.items(), key=lambda pair: pair[1]) if fresh else None

    def _clock(self) -> float:
        """The time of the store's clock."""
        key = f"{CLOCK}/{uuid.uuid4().hex}"
        self._store.put(key, b"")
        try:
            stored = self._store.stored(key)
        finally:
            self._store.delete(key)
        if stored is None:
            raise StoreError(f"{self._store.address}: a new object cannot be found")
        return stored.when

    def _watch(self, key: str, age: float, holder: dict[str, Any], end: float) -> None:
        """Waits until the other lease has ended or is stale. Raises ValueError if it is alive."""
        began, first = time.monotonic(), self._store.get(key)
        while first is not None and age + time.monotonic() - began < self._stale_s:
            time.sleep(min(1.0, self._renew_s / 4))
            now = self._store.get(key)
            if now is None:
                return
            if now != first:
                if time.monotonic() < end:
                    first, began, age = now, time.monotonic(), 0.0
                    continue
                raise ValueError(
                    f"another process writes at {self._store.address}: {_named(holder)}, since "
                    f"{holder.get('since', 'some time')}. Stop it, or use another --name; if it "
                    f"is killed, the address is free {self._stale_s:.0f} s later"
                )
        self._dead.add(key)

    def _holder(self, key: str) -> dict[str, Any]:
        try:
            content = json.loads(self._store.get(key) or b"{}")
        except ValueError:
            content = {}
        return content if isinstance(content, dict) else {}

    def _put(self) -> None:
        about = {
            "host": socket.gethostname(),
            "machine": self._machine,
            "pid": os.getpid(),
            "began": _began(os.getpid()),
            "since": self._since,
            "renewals": self._renewals,
        }
        self._store.put(self._key, json.dumps(about).encode())

    # --- Renewing -------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s) and self.lost is None:
            try:
                self._renew()
            except StoreError:
                continue  # `require` raises if this lasts too long

    def _renew(self) -> None:
        leases = {k for k in self._store.listing(FOLDER) if NAME.fullmatch(k)}
        later = [k for k in leases if k > self._key and k != self._key]
        if self._key not in leases or later:
            # The lease of a process that only tries to acquire is withdrawn after a moment.
            later = [k for k in later if self._store.stored(k) is not None]
            if self._key not in leases or (later and self._stays(later)):
                self.lost = LeaseLost(
                    f"another process writes at {self._store.address} now, because this one did "
                    "not renew its lease; this one ends, and what it had not copied stays here"
                )
                return
        put_at = _now()
        self._renewals += 1
        self._put()
        self._renewed = put_at

    def _stays(self, keys: list[str]) -> bool:
        """Whether one of these leases still exists after a moment."""
        for _ in range(5):
            if self._ended.wait(0.2):
                return False
            keys = [key for key in keys if self._store.stored(key) is not None]
        return bool(keys)


def this_machine() -> str:
    """An id of this boot of the machine and of the container's process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a lease's process on this machine still runs."""
    pid = holder.get("pid")
    return not isinstance(pid, int) or _began(pid) == holder.get("began", "")


def _began(pid: int) -> str:
    """Start time of a process in clock ticks, because ids are reused; "" if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'another machine')}"


def _now() -> float:
    """Seconds of a clock that also counts the machine's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
