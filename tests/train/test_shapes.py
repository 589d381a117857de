"""Shapes are those of the papers, and what is built has the parameters that are said."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from leaven.errors import UsageError
from leaven.train.schedule import Schedule
from leaven.train.shapes import SHAPES, Shape, config_of, shape


def inside(name: str) -> float:
    """Parameters without embeddings."""
    found = SHAPES[name]
    return found.parameters(0)


def test_the_totals_of_paper_000_count_no_embeddings() -> None:
    for name, millions in (("mga-134m", 134), ("mga-377m", 377), ("mga-1.7b", 1680)):
        assert inside(name) / 1e6 == pytest.approx(millions, rel=0.005), name


def test_the_others_are_near_their_names() -> None:
    assert SHAPES["001-350m"].parameters(50_304) == pytest.approx(350e6, rel=0.2)
    assert SHAPES["001-1.4b"].parameters(50_304) == pytest.approx(1.4e9, rel=0.1)
    assert SHAPES["sbp-3b"].parameters(49_152) == pytest.approx(3e9, rel=0.05)
    assert SHAPES["sbp-6b"].parameters(49_152) == pytest.approx(6e9, rel=0.16)
    for name, millions in (("1m", 1.1), ("3m", 3.0), ("10m", 10.0), ("30m", 30.0)):
        assert SHAPES[name].parameters(4096) / 1e6 == pytest.approx(millions, rel=0.15), name


def test_an_unknown_shape_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown model shape 'mga-134'; did you mean 'mga-134m'"):
        shape("mga-134")
    with pytest.raises(ValidationError, match="not a multiple of heads"):
        Shape(hidden=100, inner=10, layers=1, heads=3)


@pytest.mark.torch
@pytest.mark.parametrize(
    "found", [SHAPES["1m"], Shape(hidden=64, inner=96, layers=2, heads=4, kv_heads=2, qk_norm=True)]
)
def test_what_is_built_has_the_parameters_that_are_said(found: Shape) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(found, vocab_size=500, context=64, end=0))
    assert sum(one.numel() for one in model.parameters()) == found.parameters(500)


def test_wsd_rises_stays_and_falls_in_the_papers_shares() -> None:
    found = Schedule(name="wsd")
    rates = [found.at(step, 10_000) for step in range(10_000)]
    assert rates[0] == 0.1 and rates[9] == 1.0, "0.1% warm-up"
    assert all(rate == 1.0 for rate in rates[9:7500]) and rates[7500] < 1.0, "25% decay"
    assert rates[-1] == 0.0 and rates[8750] == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear"])
def test_every_schedule_ends_at_its_floor_and_never_rises_after_the_warm_up(name: str) -> None:
    found = Schedule.model_validate({"name": name, "floor": 0.1, "warm_up": 0.1})
    rates = [found.at(step, 200) for step in range(200)]
    assert rates[19] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[:20] == sorted(rates[:20]) and rates[19:] == sorted(rates[19:], reverse=True)


def test_constant_is_constant_and_one_step_is_enough() -> None:
    assert {Schedule(name="constant").at(step, 50) for step in range(50)} == {1.0}
    for name in ("wsd", "cosine", "linear", "constant"):
        assert 0 <= Schedule.model_validate({"name": name}).at(0, 1) <= 1
