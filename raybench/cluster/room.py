"""Room: how many trials may run now, while nodes join and leave; how long to wait for room.

It queries Ray through functions that are arguments, so that tests do not need Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from raybench.cluster import fit
from raybench.cluster.fit import Needs, Node

LOOK_S = 1.0  # between two queries of the nodes
NOTICE_S = 2.0
HOPELESS_S = 20.0  # longest wait for room once the autoscaler has refused a single trial
TAKEN_S = 60.0  # shortest wait if the nodes could hold a trial: a dead actor's CPUs are freed late


class Room:
    """The slots of a sweep.

    Args:
        needs: resources of a trial.
        nodes: returns the current nodes.
        most: most concurrent trials; None for as many as fit.
        wait_s: how long to wait for room for a trial.
        types: the nodes that may be started; None if unknown.

    Raises:
        ValueError: no trial fits now or later.
    """

    def __init__(
        self,
        needs: Needs,
        *,
        nodes: Callable[[], Sequence[Node]],
        most: int | None,
        wait_s: float,
        types: Sequence[Node] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.needs, self.wait_s = needs, wait_s
        self._look, self._most, self._types, self._clock = nodes, most, types, clock
        self._looked = -float("inf")
        self._stuck_since: float | None = None
        self._had_room = False
        self.nodes: Sequence[Node] = []
        self.slots = 0
        self.look()
        if not self.slots and (wait_s <= 0 or fit.never_fits(types, self.nodes, needs)):
            raise ValueError(self.refusal())

    def look(self) -> None:
        """Recounts the slots, at most every `LOOK_S`."""
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        self.nodes = self._look()
        fits = fit.slots(self.nodes, self.needs)
        self.slots = fits if self._most is None else min(fits, self._most)
        self._had_room = self._had_room or self.slots > 0

    def wanted(self, trials: int) -> int:
        """Slots that this many trials could use."""
        return trials if self._most is None else min(trials, self._most)

    @property
    def expected(self) -> int:
        """Slots once every node that may be started has joined."""
        return self.wanted(fit.slots([*self.nodes, *(self._types or ())], self.needs))

    def wait(self, stuck: bool, hopeless: bool = False) -> Exception | None:
        """Called at every heartbeat; returns an error once no trial has had room for too long.

        Args:
            stuck: whether no trial has room now.
            hopeless: whether the autoscaler has refused room for a trial.
        """
        now = self._clock()
        if not stuck:
            self._stuck_since = None
            return None
        if self._stuck_since is None:
            self._stuck_since = now
        limit = max(self.wait_s, TAKEN_S) if self.slots else self.wait_s
        limit = min(limit, HOPELESS_S) if hopeless else limit
        if now - self._stuck_since <= limit:
            return None
        error: type[Exception] = RuntimeError if self._had_room else ValueError
        return error(self.refusal(now - self._stuck_since))

    @property
    def waits(self) -> bool:
        """Whether no trial has had room for a while; starting an actor also takes a moment."""
        since = self._stuck_since
        return since is not None and self._clock() - since > NOTICE_S

    @property
    def waiting(self) -> str:
        """The message when a wait begins."""
        return f"waiting for room, at most {self.wait_s:.0f} s: a trial {self}"

    def __str__(self) -> str:
        """Needs and resources: `needs 1 CPU; 2 nodes hold 8 CPUs, the largest 4 CPUs`."""
        taken = ", which others use" if self.slots else ""
        return f"needs {self.needs}; {fit.holdings(self.nodes)}{taken}"

    def refusal(self, waited_s: float = 0.0) -> str:
        """Why no trial has room, with advice, in one line."""
        waited = f" after {waited_s:.0f} s" if waited_s else ""
        come = ""
        if self._types:
            come = f"; the largest node that may come holds {fit.largest(self._types)}"
        return f"a trial does not fit into the cluster{waited}: it {self}{come}; {self._advice()}"

    def _advice(self) -> str:
        needs = self.needs
        if self.slots:
            return "wait longer with --wait SECONDS"
        advice = []
        if needs.parts > 1:
            advice.append("take fewer " + ("--workers" if needs.kind == "worker" else "stages"))
        if needs.gpus:
            advice.append("take --gpus 0")
        return " or ".join(advice) or "add a node, or wait longer with --wait SECONDS"
