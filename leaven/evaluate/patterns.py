"""Loss patterns: where in a text do two models begin to part?

Paper: "Reformulation for Pretraining Data Augmentation" (MGA, seed 000), section 4.3.3 and appendix D.4; what
is found here is what its figure 7 is drawn from. A model trained on synthetic text may lose on real text; whether
that is collapse or another way of learning shows in how the loss is spread over a text.

    losses of both models --second minus first--> difference of every token
    means per text                                the scatter
    first window far above the average            first anomaly, as a share of the text
    all texts                                     histogram of those positions

The definition, for a text of n tokens and differences d (second minus first; the paper: synthetic minus real):

    w        max(n // 20, 1)               "5% of the length"; the paper does not say how it is rounded
    mu, s    mean and standard deviation (of the population) of d
    first    the smallest p, from 0, with |mean of d[p : p + w]| > |mu| + k * s; windows lie whole in the text
    share    100 * p / n, or -1 where no window is that far out

The paper leaves k open. s is the spread of single tokens, not of window means, which have s / sqrt(w): what k
lets through depends on the length. With what probability pure noise is called an anomaly (4,000 texts each;
normal / Laplace, whose tails are nearer to those of losses):

    tokens    k = 0.5        k = 1          k = 1.5        k = 2          k = 3
    20        1.00 / 1.00    1.00 / 1.00    .97 / 1.00     .53 / .85      .01 / .14
    40        1.00 / 1.00    1.00 / 1.00    .58 / .77      .07 / .24      .00 / .00
    100       1.00 / 1.00    .64 / .74      .02 / .08      .00 / .00      .00 / .00
    200       1.00 / 1.00    .07 / .13      .00 / .00      .00 / .00      .00 / .00
    500       .55 / .58      .00 / .00      .00 / .00      .00 / .00      .00 / .00
    1000      .04 / .04      .00 / .00      .00 / .00      .00 / .00      .00 / .00

A large k, on the other hand, can hardly be reached: a window must stand 1.1 (k = 1), 2.4 (k = 2) or 4.4 (k = 3)
standard deviations of single tokens above the rest of its text, and no window of n / 20 tokens stands more than
4.4 s above mu. Between models trained on raw and on synthetic text (3.8M parameters, 42 texts of 230 tokens)
k = 1 marked 29% of the texts where their shuffled tokens gave 5 to 12%, and k = 2 none. So the default is 1,
for texts of some 200 tokens or more, and every histogram comes with the one that chance gives: the same texts
with their differences shuffled. (A first crossing comes early by chance alone; that is not in the paper.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.errors import UsageError
from leaven.evaluate.sets import read_lines
from leaven.measure.statistics import Interval, bootstrap
from leaven.stage import write_json

K = 1.0
BINS = 20
SHUFFLES = 20  # of every text, for what chance gives
_ROUNDING = 1e-9  # of the largest difference: sums of floats are no more exact, and equal is not above

Progress = Callable[[str, int, int | None], None]
Losses = NDArray[np.float32]


class Texts(BaseModel):
    """Texts on which every arm is held against the baseline, token by token.

    Args:
        path: JSONL of {"text"}, "id" as well if they have one.
        k, bins: as of `patterns`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: PlanPath
    k: float = Field(K, ge=0)
    bins: int = Field(BINS, ge=1)

    def read(self) -> list[tuple[str, str]]:
        """(id, text) of every line.

        Raises:
            UsageError: an unreadable file or line.
        """
        lines = read_lines(self.path, f"evaluate: patterns: {self.path}", ("text",))
        return [(identifier, str(row["text"])) for _, identifier, _, row in lines]


@dataclass(frozen=True)
class Pattern:
    """Where the two models part in one text; see the top of this file.

    Args:
        first_anomaly: token at which the window begins, from 0; -1 where there is none.
        normalised_position: per cent of the length, 0 to below 100; -1 where there is none.
        window: tokens.
        mean, deviation: of the differences; nan for a text without tokens.
    """

    first_anomaly: int
    normalised_position: float
    window: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Row:
    """One text.

    Args:
        loss_first, loss_second: natural log per token, a point of the scatter; nan for a text without tokens.
        first_anomaly, normalised_position: as of `Pattern`.
    """

    id: str
    tokens: int
    loss_first: float
    loss_second: float
    first_anomaly: int
    normalised_position: float


@dataclass(frozen=True)
class Estimate:
    """A figure over texts; drawn for the interval are the texts."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Patterns:
    """All texts under two models.

    Args:
        rows: in the order of the texts.
        differences: per token, second minus first, shape (tokens,) of each text.
        edges: of the histogram of normalised positions, per cent, shape (bins + 1,).
        counts: texts in each bin, shape (bins,).
        without: texts without an anomaly; with `counts` they are all texts.
        by_chance: what `counts` would be, on average, were each text's differences in random order, shape (bins,).
        difference: mean over texts of the second model's mean loss minus the first's.
        correlation: Pearson's, of the two mean losses.
    """

    k: float
    rows: list[Row]
    differences: list[Losses]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    without: int
    by_chance: tuple[float, ...]
    difference: Estimate
    correlation: Estimate

    def write(self, folder: Path) -> None:
        """Write ``patterns.parquet``, one row a text with its differences, and ``patterns.json``, all else."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [getattr(row, name) for row in self.rows] for name in Row.__dataclass_fields__}
        lists = pa.array(self.differences, pa.list_(pa.float32()))
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({**columns, "difference": lists}), folder / "patterns.parquet")
        found: dict[str, Any] = {"k": self.k, "texts": len(self.rows), "without": self.without}
        found |= {"edges": self.edges, "counts": self.counts, "by_chance": self.by_chance}
        found |= {"difference": _plain(self.difference), "correlation": _plain(self.correlation)}
        write_json(folder / "patterns.json", found)


def pattern(difference: ArrayLike, k: float = K) -> Pattern:
    """Where the differences of one text first run far from their average.

    Args:
        difference: loss of the second model minus that of the first, shape (tokens,).
        k: standard deviations of single tokens above the average; see the top of this file.
    """
    values = np.asarray(difference, dtype=np.float64)
    length = len(values)
    window = max(length // 20, 1)
    if not length:
        return Pattern(-1, -1.0, window, math.nan, math.nan)
    first = int(_first(values[None], k)[0])
    position = -1.0 if first < 0 else 100 * first / length
    return Pattern(first, position, window, float(values.mean()), float(values.std()))


def _first(values: NDArray[np.float64], k: float) -> NDArray[np.intp]:
    """First anomaly of every row of `values`, shape (rows, tokens), with a token or more; -1 for none."""
    window = max(values.shape[1] // 20, 1)
    sums = np.pad(values.cumsum(1), ((0, 0), (1, 0)))
    means = np.abs(sums[:, window:] - sums[:, :-window]) / window
    slack = _ROUNDING * np.abs(values).max(1)
    above = means > (np.abs(values.mean(1)) + k * values.std(1) + slack)[:, None]
    return np.where(above.any(1), above.argmax(1), -1)


def patterns(
    first: Path,
    second: Path,
    texts: Sequence[tuple[str, str]],
    *,
    k: float = K,
    bins: int = BINS,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Patterns:
    """Compare two checkpoints token by token.

    Args:
        first: folder of the model that is subtracted (in the paper: trained on real data).
        second: folder of the other (trained on synthetic data).
        texts: (id, text).
        bins: of the histogram.
        seed: of the intervals.

    Raises:
        UsageError: no checkpoint there, or two that split the texts into different tokens.
    """
    from leaven.evaluate.likelihood import Scorer

    _same_tokens(first, second, texts)
    bodies = [text for _, text in texts]
    losses: list[list[Losses]] = []
    for what, folder in (("losses under the first model", first), ("losses under the second model", second)):
        losses.append(Scorer(folder).token_losses(bodies, partial(progress, what)))
    return compare([identifier for identifier, _ in texts], *losses, k=k, bins=bins, seed=seed)


def compare(
    ids: Sequence[str],
    first: Sequence[Losses],
    second: Sequence[Losses],
    *,
    k: float = K,
    bins: int = BINS,
    seed: int = 0,
) -> Patterns:
    """Patterns from the losses of both models, shape (tokens,) of each text."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    rows: list[Row] = []
    for identifier, a, b, apart in zip(ids, first, second, differences, strict=True):
        found = pattern(apart, k)
        one, other = (float(side.mean(dtype=np.float64)) if len(side) else math.nan for side in (a, b))
        rows.append(Row(identifier, len(apart), one, other, found.first_anomaly, found.normalised_position))
    positions = [row.normalised_position for row in rows if row.first_anomaly >= 0]
    counts, edges = np.histogram(positions, bins, (0.0, 100.0))
    by_chance = _by_chance(differences, k, bins, seed)
    points = np.array([(row.loss_first, row.loss_second) for row in rows if row.tokens]).reshape(-1, 2)
    return Patterns(
        k, rows, differences, tuple(map(float, edges)), tuple(map(int, counts)), len(rows) - len(positions),
        by_chance, _difference(points, seed), _correlation(points, seed),
    )  # fmt: skip


def _by_chance(differences: Sequence[Losses], k: float, bins: int, seed: int) -> tuple[float, ...]:
    """Texts in each bin, mean over `SHUFFLES` orders of every text's tokens."""
    rng = np.random.default_rng(seed)
    total = np.zeros(bins)
    for one in differences:
        if len(one):
            shuffled = rng.permuted(np.tile(np.asarray(one, dtype=np.float64), (SHUFFLES, 1)), axis=1)
            first = _first(shuffled, k)
            total += np.histogram(100 * first[first >= 0] / len(one), bins, (0.0, 100.0))[0]
    return tuple(map(float, total / SHUFFLES))


def _difference(points: NDArray[np.float64], seed: int) -> Estimate:
    apart = points[:, 1] - points[:, 0]
    return Estimate(*bootstrap([apart, np.ones(len(apart))], lambda over, under: over / under, seed=seed))


def _correlation(points: NDArray[np.float64], seed: int) -> Estimate:
    """Pearson's correlation as a function of sums, so that texts can be drawn."""
    if not len(points):
        return Estimate(math.nan, None)
    x, y = (points - points.mean(0)).T  # near zero, sums of squares lose no digits

    def pearson(n: Any, x: Any, y: Any, xx: Any, yy: Any, xy: Any) -> Any:
        return (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))

    return Estimate(*bootstrap([np.ones(len(x)), x, y, x * x, y * y, x * y], pearson, seed=seed))


def _same_tokens(first: Path, second: Path, texts: Sequence[tuple[str, str]]) -> None:
    """Differences of tokens need the same tokens; special ones that no text holds may differ."""
    from leaven.corpus.tokens import load_tokenizer

    a, b = (load_tokenizer(str(folder)) for folder in (first, second))
    if a.fingerprint == b.fingerprint:
        return
    for identifier, text in texts:
        if a.encode(text) != b.encode(text):
            raise UsageError(
                f"patterns: {first} and {second} split text {identifier!r} into different tokens; "
                "both models must have the same tokenizer"
            )


def _plain(estimate: Estimate) -> dict[str, Any]:
    """For JSON, which knows no nan."""
    value = estimate.value if math.isfinite(estimate.value) else None
    return {"value": value, "interval": estimate.interval and asdict(estimate.interval)}
