"""Loss patterns: the vectorised rule against the definition written out, and two real models end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.errors import UsageError
from leaven.evaluate.patterns import K, compare, pattern, patterns


def definition(differences: Sequence[Fraction], k: Fraction) -> int:
    """Appendix D.4 in exact fractions: |window mean| > |mu| + k * sigma, without a root."""
    n = len(differences)
    window = max(n // 20, 1)
    mu = sum(differences, Fraction(0)) / max(n, 1)
    variance = sum(((one - mu) ** 2 for one in differences), Fraction(0)) / max(n, 1)
    for p in range(n - window + 1 if n else 0):
        excess = abs(sum(differences[p : p + window], Fraction(0)) / window) - abs(mu)
        if excess > 0 and excess**2 > k**2 * variance:
            return p
    return -1


eighths = st.integers(-40, 40).map(lambda n: Fraction(n, 8))


@given(
    st.lists(eighths, max_size=90)
    | st.builds(lambda value, n: [value] * n, eighths, st.integers(0, 90))
    | st.builds(lambda n, at: [Fraction(i == at) for i in range(n)], st.integers(1, 90), st.integers(0, 90)),
    st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(2), Fraction(3)]),
)
def test_the_first_anomaly_is_that_of_the_definition(differences: list[Fraction], k: Fraction) -> None:
    found = pattern([float(one) for one in differences], float(k))
    first = definition(differences, k)
    assert found.first_anomaly == first
    assert found.normalised_position == (-1 if first < 0 else pytest.approx(100 * first / len(differences)))


def test_where_a_stretch_is_worse_its_beginning_is_found() -> None:
    difference = np.zeros(200)
    difference[150:170] = 3.0
    found = pattern(difference)
    assert found.window == 10 and (found.mean, found.deviation) == pytest.approx((0.3, 0.9))
    # 0.3 + 0.9 = 1.2 is passed by the first window with 5 of its 10 tokens in the stretch
    assert (found.first_anomaly, found.normalised_position) == (145, 72.5)
    assert pattern(-difference).first_anomaly == 145, "either model's loss counts"
    assert pattern(difference, k=2).first_anomaly == 148, "2.1 takes 8 of 10"
    assert pattern(difference, k=3.1).first_anomaly == -1


@pytest.mark.parametrize("difference", [[], [0.1], [0.1] * 7, [0.1] * 1000, [-1e-7] * 333])
def test_where_nothing_changes_there_is_no_anomaly(difference: list[float]) -> None:
    found = pattern(difference, 0)
    assert (found.first_anomaly, found.normalised_position) == (-1, -1.0)


@pytest.mark.parametrize(("length", "least", "most"), [(100, 0.55, 0.73), (200, 0.03, 0.12), (500, 0, 0.01)])
def test_noise_is_called_an_anomaly_as_often_as_the_top_of_the_file_says(
    length: int, least: float, most: float
) -> None:
    noise = np.random.default_rng(0).standard_normal((400, length))
    assert least <= np.mean([pattern(one, K).first_anomaly >= 0 for one in noise]) <= most


losses = st.lists(st.floats(0, 20, width=32), max_size=60).map(lambda one: np.array(one, dtype=np.float32))


@given(st.lists(losses, max_size=8), st.integers(1, 7), st.integers(0, 5))
def test_every_text_is_in_the_histogram_or_without(texts: list[np.ndarray], bins: int, seed: int) -> None:
    other = [np.random.default_rng(seed).permutation(one) for one in texts]
    ids = [str(i) for i in range(len(texts))]
    found = compare(ids, texts, other, bins=bins, seed=seed)
    assert sum(found.counts) + found.without == len(texts) == len(found.rows)
    assert len(found.counts) == len(found.by_chance) == bins == len(found.edges) - 1
    assert 0 <= sum(found.by_chance) <= len(texts) + 1e-9
    assert (
        [row.tokens for row in found.rows] == [len(one) for one in found.differences] == list(map(len, texts))
    )
    for row, one in zip(found.rows, texts, strict=True):
        assert (
            math.isnan(row.loss_first)
            if not len(one)
            else row.loss_first == pytest.approx(one.mean(), abs=1e-5)
        )


def test_chance_is_what_shuffled_tokens_give() -> None:
    """A shift at the end of texts is not found by chance, and what noise gives comes early."""
    rng = np.random.default_rng(0)
    first = [rng.standard_normal(400).astype(np.float32) for _ in range(30)]
    second = [np.concatenate([one[:360], one[360:] + 3]) + rng.standard_normal(400) for one in first]
    late = compare([""] * 30, first, [one.astype(np.float32) for one in second], bins=10)
    assert late.counts[8] + late.counts[9] == 30 and sum(late.by_chance) < 1
    noise = compare(
        [""] * 30, first, [one - rng.standard_normal(400).astype(np.float32) for one in first], k=0.5
    )
    assert sum(noise.counts) == pytest.approx(sum(noise.by_chance), abs=8)
    assert sum(noise.by_chance[:10]) > 2 * sum(noise.by_chance[10:])


def test_the_scatter_is_summed_up_with_intervals() -> None:
    rng = np.random.default_rng(1)
    means = rng.uniform(1, 5, 40)
    first = [np.full(9, one, dtype=np.float32) for one in means]
    second = [one + np.float32(0.5 + 0.2 * rng.standard_normal()) for one in first]
    found = compare([str(i) for i in range(40)], first, second)
    points = [(row.loss_first, row.loss_second) for row in found.rows]
    assert found.difference.value == pytest.approx(np.mean([b - a for a, b in points]))
    assert found.correlation.value == pytest.approx(np.corrcoef(np.array(points).T)[0, 1])
    for one in (found.difference, found.correlation):
        assert one.interval and one.interval.low < one.value < one.interval.high and one.interval.units == 40
    nothing = compare(["e"], [np.empty(0, np.float32)], [np.empty(0, np.float32)])
    assert (
        math.isnan(nothing.difference.value) and nothing.correlation.interval is None and nothing.without == 1
    )


def checkpoint(folder: Path, seed: int, words: str = "The bag fell into the sea.") -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    from leaven.corpus.tokens import train_tokenizer
    from leaven.train.pretrain import _save_tokenizer
    from leaven.train.shapes import Shape, config_of

    train_tokenizer([words] * 3, 280).save(folder / "tokenizer.json")
    torch.manual_seed(seed)
    shape = Shape(hidden=32, inner=64, layers=1, heads=2, tied=True)
    config = config_of(shape, vocab_size=300, context=64, end=0)
    config.initializer_range = 0.2
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    _save_tokenizer(folder / "tokenizer.json", 0, folder / "model")
    return folder / "model"


@pytest.mark.torch
def test_two_models_are_compared_token_by_token(tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leaven.evaluate.likelihood import Scorer

    first, second = (checkpoint(tmp_path / str(seed), seed) for seed in (0, 1))
    bodies = ["The bag fell into the sea. " * 20, "", "Far out", "x", "The bag fell."]
    texts = [(f"t{i}", text) for i, text in enumerate(bodies)]
    seen: list[tuple[str, int, int | None]] = []
    found = patterns(first, second, texts, bins=4, progress=lambda *facts: seen.append(facts))
    assert [row.id for row in found.rows] == [name for name, _ in texts]
    assert found.rows[0].tokens > 64, "longer than the context"
    assert {what for what, _, _ in seen} == {"losses under the first model", "losses under the second model"}
    for folder, name in ((first, "loss_first"), (second, "loss_second")):
        totals = Scorer(folder).score([("", text) for text in bodies])
        for row, (total, tokens) in zip(found.rows, totals, strict=True):
            assert row.tokens == tokens
            assert tokens == 0 or getattr(row, name) == pytest.approx(-total / tokens, abs=1e-4)
    encode = AutoTokenizer.from_pretrained(first).encode
    expected = []
    for folder in (first, second):
        model = AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.tensor([[0, *encode(bodies[4], add_special_tokens=False)]])
        with torch.inference_mode():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        expected.append(-scores[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy())
    assert found.differences[4] == pytest.approx(expected[1] - expected[0], abs=1e-4)

    found.write(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "patterns.parquet").to_pylist()
    assert [len(row["difference"]) for row in table] == [row["tokens"] for row in table]
    assert table[4]["difference"] == pytest.approx(list(found.differences[4]))
    assert [row["first_anomaly"] for row in table] == [row.first_anomaly for row in found.rows]
    written = json.loads((tmp_path / "out" / "patterns.json").read_text())
    assert sum(written["counts"]) + written["without"] == written["texts"] == 5
    assert written["edges"] == [0, 25, 50, 75, 100] and written["k"] == K
    assert written["difference"]["interval"]["units"] == 4, "an empty text has no loss"


@pytest.mark.torch
def test_models_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "a", 0)
    second = checkpoint(tmp_path / "b", 0, "Quite another text, and its words are others.")
    with pytest.raises(
        UsageError, match="split text 'two' into different tokens; both models must have the same"
    ):
        patterns(first, second, [("one", ""), ("two", "The bag fell into the sea.")])
    with pytest.raises(UsageError, match="none"):
        patterns(first, tmp_path / "none", [("one", "x")])
