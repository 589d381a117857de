"""How many requests may be in flight: additive increase, multiplicative decrease.

The limit grows by one for every answer until the server first complains (so it doubles each round
trip), and by one per round trip after that. A complaint (429, 5xx) cuts it to 0.75, once per burst:
complaints about requests that were sent before the cut say nothing new. `Retry-After` closes the gate
for that long. Whoever waits to try again holds no slot. Waiting requests go by priority, which is the
order of their documents, so that the requests of one document stay together and meet a warm prefix cache.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

DECREASE = 0.75
FIRST_LIMIT = 32


class Gate:
    """Slots for requests in flight.

    Args:
        most: the limit never exceeds this.
        clock: seconds, monotonic; replaceable for tests.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = float(min(most, FIRST_LIMIT))
        self.in_flight = 0
        self.cuts = 0
        self._clock = clock
        self._ramping = True
        self._epoch = 0  # number of cuts; a slot remembers the epoch it was taken in
        self._closed_until = 0.0
        self._wake: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[int]]] = []
        self._order = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def hungry(self) -> bool:
        """True while more work should be started: fewer requests wait than would fill the slots."""
        return self.in_flight + len(self._waiting) < self.limit

    async def acquire(self, priority: int) -> int:
        """Wait for a slot; returns the ticket to give back to `release`."""
        if self._open() and not self._waiting:
            self.in_flight += 1
            return self._epoch
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._waiting, (priority, self._order, future))
        self._admit()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._free()  # the slot was granted in the same moment
            raise

    def release(self, ticket: int, *, complained: bool = False, retry_after: float | None = None) -> None:
        """Give the slot back and say how the server took it."""
        if complained:
            if ticket == self._epoch:
                self.limit = max(1.0, self.limit * DECREASE)
                self._epoch += 1
                self.cuts += 1
                self._ramping = False
            if retry_after:
                self._closed_until = max(self._closed_until, self._clock() + retry_after)
        else:
            self.limit = min(self.most, self.limit + (1.0 if self._ramping else 1.0 / self.limit))
        self._free()

    def abandon(self) -> None:
        """Give a slot back without learning from it (cancelled, connection lost, request refused)."""
        self._free()

    def _open(self) -> bool:
        return self.in_flight < int(self.limit) and self._clock() >= self._closed_until

    def _free(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._open():
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                self.in_flight += 1
                future.set_result(self._epoch)
        delay = self._closed_until - self._clock()
        if self._waiting and delay > 0 and self._wake is None:
            self._wake = asyncio.get_running_loop().call_later(delay, self._reopen)

    def _reopen(self) -> None:
        self._wake = None
        self._admit()
