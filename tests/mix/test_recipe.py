"""The arithmetic of recipes: to the block, and the papers' own tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leaven.errors import UsageError
from leaven.mix.recipe import (
    Amount,
    Replay,
    Supply,
    allocate,
    by_unique_tokens,
    largest_remainder,
    synthetic_share,
    two_sources,
)

REAL, SYNTHETIC = Supply(1000, False), Supply(4000, True)
SUPPLIES = {"real": REAL, "mga": SYNTHETIC, "other": Supply(9000, False), "none": Supply(0, True)}


def resolve(
    tokens: int = 2000, context: int = 10, seed: int = 0, replay: Replay | None = None, **amounts: Any
) -> Any:
    wanted = {name: Amount.model_validate(amount) for name, amount in amounts.items()}
    return allocate("a", wanted, SUPPLIES, tokens=tokens, context=context, seed=seed, replay=replay)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8), st.integers(1, 10_000))
def test_parts_add_up_exactly_and_are_within_one_of_their_share(raw: list[float], total: int) -> None:
    shares = [one / sum(raw) for one in raw]
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    assert all(abs(count - share * total) < 1 + 1e-6 for count, share in zip(counts, shares, strict=True))


def test_weights_are_shares_of_the_budget() -> None:
    found = resolve(real=0.25, mga=0.75)
    assert [(one.source, one.blocks, one.tokens) for one in found.shares] == [
        ("real", 50, 500),
        ("mga", 150, 1500),
    ]
    assert found.shares[0].epochs == 0.5 and found.tokens == 2000
    assert np.bincount(found.which).tolist() == [50, 150]
    assert resolve(real=25, mga=75).shares == found.shares, "percents"


def test_what_is_over_after_whole_blocks_is_left_out() -> None:
    found = resolve(tokens=2009, real=0.5, mga=0.5)
    assert found.tokens == 2000 == sum(one.tokens for one in found.shares)


def test_amounts_are_taken_as_they_are() -> None:
    found = resolve(real={"epochs": 1}, mga={"tokens": 1000})
    assert [one.tokens for one in found.shares] == [1000, 1000]


def test_the_entire_set_recipe_of_paper_000() -> None:
    """Table 8, in millions: 50 x 10 against 50 x 2 + 200 x 2."""
    supplies = {"edu": Supply(50_000_000, False), "mga": Supply(200_000_000, True)}
    options = {"tokens": 500_000_000, "context": 1000, "seed": 0}
    baseline = allocate("baseline", {"edu": Amount(weight=1)}, supplies, **options)
    assert baseline.shares[0].epochs == 10
    expansion = {"edu": Amount(epochs=2), "mga": Amount(epochs=2, repeat=True)}
    found = allocate("mga", expansion, supplies, **options)
    assert [one.epochs for one in found.shares] == [2, 2] and found.tokens == baseline.tokens
    unique = allocate("unique", by_unique_tokens(["edu", "mga"], supplies, "x") | {
        "mga": Amount(weight=0.8, repeat=True)
    }, supplies, **options)  # fmt: skip
    assert [one.epochs for one in unique.shares] == [2, 2]


@pytest.mark.parametrize(
    ("amounts", "epochs"),
    [
        ({"edu": 50 * 1.4, "web": 450 * 1.4}, [1.4, 1.4]),
        ({"edu": 50 * 5, "web": 450}, [5, 1]),
        ({"edu": 50, "mga": 200, "web": 450}, [1, 1, 1]),
    ],
)
def test_the_subset_recipes_of_paper_000(amounts: dict[str, float], epochs: list[float]) -> None:
    """Table 8, in millions: three ways to spend 700 on 50 of good text, 200 that MGA made of it, 450 of the web."""
    supplies = {
        "edu": Supply(50_000_000, False),
        "mga": Supply(200_000_000, True),
        "web": Supply(450_000_000, False),
    }
    wanted = {name: Amount(tokens=round(millions * 1_000_000)) for name, millions in amounts.items()}
    found = allocate("a", wanted, supplies, tokens=700_000_000, context=1000, seed=0)
    assert [one.epochs for one in found.shares] == pytest.approx(epochs) and found.tokens == 700_000_000


def test_expansion_and_mga_only_of_table_11_leave_the_other_sources_alone() -> None:
    """The good text's 80.89% go to it and to MGA's by their unique tokens (195 and 770), or to MGA's alone."""
    others = {"cosmopedia": 11.65, "python": 1.66, "math": 5.80}
    sizes = {"edu": 195, "mga": 770, "cosmopedia": 28, "python": 4, "math": 14}
    supplies = {name: Supply(billions * 1000, name == "mga") for name, billions in sizes.items()}
    shares = by_unique_tokens(["edu", "mga"], supplies, "x")
    split = {name: 80.89 * (amount.weight or 0) for name, amount in shares.items()}
    assert [split["edu"], split["mga"]] == pytest.approx([16.29, 64.59], abs=0.06)
    for weights in (split | others, {"mga": 80.89} | others):
        amounts = {name: Amount(weight=weight) for name, weight in weights.items()}
        found = allocate(
            "a", amounts, supplies, tokens=1_000_000 if "edu" in weights else 900_000, context=10, seed=0
        )
        taken = {one.source: one for one in found.shares}
        for name, weight in others.items():
            assert taken[name].tokens == pytest.approx(weight / 100 * found.tokens, abs=10)
        if "edu" in weights:  # a budget of 4.15 times 241: both are seen 0.84 times
            assert taken["edu"].epochs == pytest.approx(0.84, abs=0.01) == taken["mga"].epochs


def test_the_weights_of_table_7_are_those_of_unique_tokens() -> None:
    """195, 28, 4 and 14 billion of tokens; the budget is 4.15 times all of them."""
    billions = {"edu": 195, "cosmopedia": 28, "python": 4, "math": 14}
    supplies = {name: Supply(count * 1000, False) for name, count in billions.items()}
    amounts = by_unique_tokens(list(billions), supplies, "x")
    weights = [round(100 * (amount.weight or 0), 2) for amount in amounts.values()]
    assert weights == pytest.approx([80.89, 11.65, 1.66, 5.80], abs=0.05)
    found = allocate("a", amounts, supplies, tokens=1_000_000, context=10, seed=0)
    assert all(one.epochs == pytest.approx(4.15, abs=0.01) for one in found.shares)


def test_replay_takes_the_same_places_in_every_arm() -> None:
    replay = Replay(source="other", rate=0.1)
    first, second = resolve(real=1, replay=replay), resolve(mga=1, replay=replay)
    at = [np.flatnonzero(one.which == 1).tolist() for one in (first, second)]
    assert at[0] == at[1] and 5 <= len(at[0]) <= 40
    assert first.shares[1].source == "other" and sum(one.tokens for one in first.shares) == 2000
    assert resolve(real=1, replay=replay, seed=1).which.tolist() != first.which.tolist()


def test_the_same_seed_gives_the_same_order() -> None:
    assert resolve(real=0.5, mga=0.5).which.tolist() == resolve(real=0.5, mga=0.5).which.tolist()
    assert resolve(real=0.5, mga=0.5, seed=1).which.tolist() != resolve(real=0.5, mga=0.5).which.tolist()


@pytest.mark.parametrize(
    ("amounts", "said"),
    [
        ({}, "no sources"),
        ({"rael": 1}, "unknown source 'rael'; did you mean 'real'"),
        ({"none": 1}, "'none' has no tokens"),
        ({"real": 0.5, "mga": 0.4}, "weights sum to 0.9, not to 1"),
        ({"real": 0.5, "mga": {"tokens": 1000}}, "all its sources a weight, or all an amount"),
        ({"real": {"epochs": 3}}, "add up to 3,000 tokens .real 3,000., but there is room for 2,000"),
        ({"real": {"epochs": 1}}, "add up to 1,000 tokens"),
        (
            {"mga": {"weight": 1, "repeat": False}, "tokens": 5000},
            "takes 5,000 tokens of 'mga', which has 4,000",
        ),
        ({"mga": 1, "tokens": 5000}, "1.25 epochs., and repeating it is forbidden"),
        ({"real": {"weight": 1, "repeat": False}}, "takes 2,000 tokens of 'real', which has 1,000"),
        ({"real": 1, "tokens": 9}, "a budget of 9 tokens does not fill one context of 10"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(amounts: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        resolve(**amounts)
    assert "\n" not in str(error.value) and str(error.value).startswith("arm a: ")


def test_repetition_is_allowed_where_it_is_said() -> None:
    assert resolve(tokens=8000, mga={"weight": 1, "repeat": True}).shares[0].epochs == 2
    assert resolve(tokens=3000, real=1).shares[0].epochs == 3, "real documents may repeat"


@pytest.mark.parametrize("value", [{}, {"weight": 1, "tokens": 3}, {"weight": -1}, True, {"weigth": 1}])
def test_an_amount_is_given_in_exactly_one_way(value: Any) -> None:
    with pytest.raises(ValidationError):
        Amount.model_validate(value)


def test_the_synthetic_share_falls_with_the_models_size() -> None:
    sizes = (5e8, 1e9, 2.9e9, 3e9, 9.9e9, 1e10, 1e11, 1e12)
    assert [synthetic_share(size) for size in sizes] == [0.5, 0.5, 0.5, 0.3, 0.3, 0.15, 0.05, 0.05]


@given(st.floats(0, 1), st.integers(10, 10_000))
def test_a_share_of_synthetic_tokens_is_really_taken(share: float, blocks: int) -> None:
    """Paper 004's own mixer computes the share and then concatenates everything."""
    amounts = two_sources("real", "written", share)
    supplies = {"real": Supply(1 << 40, False), "written": Supply(1 << 40, True)}
    found = allocate("arm", amounts, supplies, tokens=blocks * 8, context=8, seed=0)
    taken = {one.source: one.tokens for one in found.shares}
    assert sum(taken.values()) == blocks * 8
    assert abs(taken.get("written", 0) - share * blocks * 8) <= 8
