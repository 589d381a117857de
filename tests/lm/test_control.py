"""The gate: how many may be in flight, who goes first, and what a complaint does."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from leaven.lm.control import Gate


def test_the_limit_doubles_per_round_until_the_first_complaint_and_creeps_after() -> None:
    async def work() -> None:
        gate = Gate(1000)
        assert gate.limit == 32
        tickets = [await gate.acquire(0) for _ in range(32)]
        for ticket in tickets:
            gate.release(ticket)
        assert gate.limit == 64
        tickets = [await gate.acquire(0) for _ in range(64)]
        gate.release(tickets[0], complained=True)
        for ticket in tickets[1:10]:
            gate.release(ticket, complained=True)
        assert gate.limit == 48 and gate.cuts == 1, "one burst of complaints is one cut"
        for ticket in tickets[10:]:
            gate.release(ticket)
        assert 48.9 < gate.limit < 49.2, "one more per round"
        assert gate.in_flight == 0

    asyncio.run(work())


def test_retry_after_closes_the_gate_for_that_long() -> None:
    async def work() -> None:
        now = [0.0]
        gate = Gate(10, clock=lambda: now[0])
        ticket = await gate.acquire(0)
        gate.release(ticket, complained=True, retry_after=0.05)
        waiting = asyncio.ensure_future(gate.acquire(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        now[0] = 0.06
        assert await asyncio.wait_for(waiting, 1) == 1

    asyncio.run(work())


def test_earlier_documents_go_first() -> None:
    async def work() -> list[int]:
        gate = Gate(1)
        order: list[int] = []
        ticket = await gate.acquire(0)

        async def take(priority: int) -> None:
            mine = await gate.acquire(priority)
            order.append(priority)
            gate.release(mine)

        tasks = [asyncio.create_task(take(priority)) for priority in (5, 1, 3, 1)]
        await asyncio.sleep(0)
        gate.release(ticket)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(work()) == [1, 1, 3, 5]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ok", "complain", "abandon", "cancel"]), st.integers(0, 3)), max_size=60
    )
)
def test_no_slot_is_lost_or_granted_twice(steps: list[tuple[str, int]]) -> None:
    async def work() -> None:
        gate = Gate(4)
        most = 0

        async def one(fate: str, priority: int) -> None:
            nonlocal most
            ticket = await gate.acquire(priority)
            most = max(most, gate.in_flight)
            try:
                await asyncio.sleep(0)
            finally:
                if fate in ("ok", "complain"):
                    gate.release(ticket, complained=fate == "complain")
                else:
                    gate.abandon()

        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one(*step)) for step in steps]
        await asyncio.sleep(0)
        for (fate, _), task in zip(steps, tasks, strict=True):
            if fate == "cancel" and gate.waiting:
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert most <= 4 and gate.in_flight == 0

    asyncio.run(work())
