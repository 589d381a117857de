"""Caps that hold whatever the order of events, and prices that are the user's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.errors import Stopped, UsageError
from leaven.lm.base import Request, Sampling, Usage
from leaven.lm.budget import Meter, Price, load_prices


@given(st.integers(500, 5000), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_token_cap_is_never_exceeded(cap: int, shares: list[float]) -> None:
    async def work() -> None:
        meter = Meter(max_tokens=cap)

        async def one(share: float) -> None:
            request = Request((("user", "x" * 100),), Sampling(max_tokens=300))
            worst = meter.worst_case(request)
            await meter.set_aside(worst)
            await asyncio.sleep(0)
            meter.settle(worst, Usage(worst.prompt, 0, int(share * 300)), request)
            assert meter.spent.total <= cap

        outcomes = await asyncio.wait_for(asyncio.gather(*map(one, shares), return_exceptions=True), 5)
        assert all(outcome is None or isinstance(outcome, Stopped) for outcome in outcomes)
        if any(isinstance(outcome, Stopped) for outcome in outcomes):
            assert meter.spent.total > cap - 366, "it stopped although there was room for one more"

    asyncio.run(work())


def test_cached_tokens_have_a_price_of_their_own() -> None:
    usage = Usage(prompt=1_000_000, cached=400_000, completion=500_000)
    assert Price(prompt=1.0, completion=2.0, cached=0.1).of(usage) == pytest.approx(0.6 + 0.04 + 1.0)
    assert Price(prompt=1.0, completion=2.0).of(usage) == pytest.approx(2.0)


def test_a_money_cap_needs_prices() -> None:
    with pytest.raises(UsageError, match="needs prices"):
        Meter(max_money=1.0)


def test_price_files_are_dated_and_mistakes_named(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    with pytest.raises(UsageError, match="No such file"):
        load_prices(path)
    path.write_text("models: {m: {prompt: 1, completion: 2}}")
    with pytest.raises(UsageError, match="as_of: field required"):
        load_prices(path)
    path.write_text("as_of: 2026-11-01\nmodels: {m: {prompt: -1, completion: 2}}")
    with pytest.raises(UsageError, match=r"models\.m\.prompt"):
        load_prices(path)
    path.write_text("as_of: 2026-11-01\nmodels: {big-model: {prompt: 1, completion: 2}}")
    with pytest.raises(UsageError, match="did you mean 'big-model'"):
        load_prices(path).price("big-modle")
