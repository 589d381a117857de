"""How long it will take: the amounts are those of the run, the seconds those of steps really done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven import run as running
from leaven.bootstrap import LONG, SIZES, sized, training_of, whole
from leaven.bootstrap.forecast import minutes
from leaven.errors import UsageError
from leaven.estimate import estimate
from leaven.generate import sbp, self_train
from leaven.generate._training import Work
from leaven.plan import resolve
from leaven.stage import read_manifest

STORIES = Path(__file__).parents[2] / "examples" / "stories"
TINY = {"hidden": 32, "inner": 64, "layers": 2, "heads": 2, "tied": True}


def test_a_duration_is_said_as_people_say_it() -> None:
    said = [minutes(seconds) for seconds in (0.1, 89, 90, 1500, 5399, 5400, 40_000)]
    assert said == ["1 s", "89 s", "2 min", "25 min", "90 min", "1.5 h", "11.1 h"]


def test_what_methods_will_do_follows_their_options() -> None:
    config = sbp.Config(samples=3, per_document=2)
    assert sbp.work(config, 100, 20_000) == Work(embedded=100, tuned=2 * 200 * 200, drawn=60_000)
    assert sbp.work(config.model_copy(update={"pairs": 50}), 100, 20_000).tuned == 2 * 200 * 50
    rounds = self_train.Config(rounds=2, tokens=1000, tier="low")
    assert self_train.work(rounds, 100, 20_000) == Work(continued=4000, drawn=6000)
    assert self_train.work(self_train.Config(control=False), 100, 20_000) == Work(
        continued=20_000, drawn=20_000
    )


@given(st.integers(1000, 10**9))
def test_larger_corpora_get_larger_models(tokens: int) -> None:
    size = sized(tokens)
    assert tokens < size.up_to and (size is SIZES[0] or tokens >= SIZES[SIZES.index(size) - 1].up_to)
    training = training_of(size, tokens, 512)
    assert training["batch_size"] * 512 == size.step and training["compile"] == (tokens >= LONG)


@given(st.integers(1, 10**7), st.integers(0, 10**8))
def test_synthetic_text_is_never_asked_for_twice(tokens: int, written: int) -> None:
    if written < 1024:
        with pytest.raises(UsageError, match=f"only {written:,} tokens of what was written were kept"):
            whole.proving("sbp", tokens, tokens // 200, 512, written)
        return
    sections = whole.proving("sbp", tokens, tokens // 200, 512, written)
    mixed = sections["mix"]["arms"]["sbp"]["sources"]
    assert sum(mixed.values()) == pytest.approx(1) and 0 < mixed["synthetic"] <= whole.SHARE
    assert mixed["synthetic"] * sections["mix"]["tokens"] <= written


@pytest.mark.torch
def test_it_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "WORTH_TELLING", 1)
    value: dict[str, Any] = {
        "name": "own", "out": tmp_path / "run", "answers": tmp_path / "a", "embeddings": tmp_path / "e",
        "method": "sbp", "documents": {"path": str(STORIES / "documents.jsonl")},
        "train": {"shape": TINY, "seeds": [0, 1, 2]}, "writer": {"epochs": 3, "pretrain": {"shape": TINY}},
    }  # fmt: skip
    found = estimate(resolve(value, Path()))
    corpus = read_manifest(tmp_path / "run" / "corpus")
    assert corpus is not None and not found.steps and not (tmp_path / "run" / "writer").exists()
    total, *lines = found.training
    assert total.startswith("this will take about ")
    assert [line.split()[0] for line in lines] == [
        "embedding",
        "pretraining",
        "tuning",
        "writing",
        "training",
    ]
    counts = corpus["counts"]
    assert f"embedding {counts['kept']:,} documents" in lines[0]
    context = 2 * whole.FIRST["chunk_tokens"] + 64
    assert f"{3 * (counts['tokens'] + counts['kept']) // context * context:,} tokens" in lines[1]
    assert "training 6 models," in lines[4], "two arms and three seeds"
