"""How many slots to request from the autoscaler: arithmetic, without Ray.

Ray's autoscaler v2 starts no node at all if a request exceeds its limits. So the limit is searched
for:

    asked       100 ✗    1 ✓   2 ✓   4 ✓   8 ✗   6 ✓   7 ✗   6 …      the limit is 6 slots
    accepted      0      1     2     4     4     6     6
    refused     100    100   100   100     8     8     7

Autoscaler v1 starts as much as it may, and never refuses.
"""

from __future__ import annotations

MOST = 1000
"""Most slots to request, because the autoscaler packs every bundle every few seconds."""


class Asking:
    """Finds the largest number of slots that the autoscaler does not refuse."""

    def __init__(self) -> None:
        self.asked = 0
        self._accepted, self._refused = 0, MOST + 1

    def answered(self, refused: bool) -> None:
        """Records the autoscaler's answer to the last request."""
        if refused:
            self._refused = min(self._refused, max(1, self.asked))
            self._accepted = min(self._accepted, self._refused - 1)
        else:
            self._accepted = max(self._accepted, self.asked)

    def next(self, wanted: int, held: int) -> int:
        """The number of slots to request now.

        Args:
            wanted: slots that the sweep could use.
            held: slots that exist now.
        """
        wanted = min(wanted, MOST)
        self._accepted = max(self._accepted, held)
        if self._refused <= self._accepted:  # more nodes exist than it would have started
            self._refused = self._accepted + 1
        if wanted < self._refused:
            self.asked = wanted
        elif self._accepted == 0:
            self.asked = 1
        else:
            between = (self._accepted + self._refused) // 2
            self.asked = min(2 * self._accepted, between, wanted)
        return self.asked

    @property
    def hopeless(self) -> bool:
        """Whether it has refused even one slot, and none exists."""
        return self._refused == 1
