"""Why does writing about pairs of entities help at all? EntiGraph's toy model, beside its theory.

    random graph of known relations --search trees--> how often each pair is written --> exact growth
    exact growth  ~  simulation, Theorem 1's bounds, branching process, three phases, three exponentials

The model is that of "Synthetic continued pretraining" (seed 003), sections 2.7 and A.5. Of V entities every
ordered pair is a known relation with probability p. A round of synthesis draws an ordered pair (x, y) and finds
a shortest path from x to y along known relations; from then on the model knows the relation of x to everything
on that path. Acc(t) is the expected share of all V (V - 1) pairs that are known after t rounds.

(i, j) becomes known in a round exactly if y is j or lies below j in the search tree of i, so its chance is
(size of the subtree of j) / (V (V - 1)), and Acc(t) is exact: a mixture of exponentials, one for every size.
Where paths tie, the search takes neighbours in ascending order; the paper leaves that open.

    python recipes/entigraph_theory.py                 # V=100, p=0.03 as in figure A.3, 20 graphs: a second
    python recipes/entigraph_theory.py --entities 300 --probability 0.01 --out runs/theory

Theorem 1 holds as V grows. At V=100 its lower bound ends above what can be reached: p + C counts known
relations twice, once as p and once among the reachable pairs C. The program says where a bound breaks.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table

from leaven.errors import UsageError
from leaven.evaluate.scaling import Curve, fit
from leaven.stage import write_json

Floats = NDArray[np.float64]

TIMES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the table, in rounds per pair of entities
BEND = 0.1  # of a phase: how far from straight, or from the limit, still counts as straight or as level
FITTED = 100  # points that the exponentials are fitted to


def known_relations(entities: int, probability: float, seed: int) -> NDArray[np.bool_]:
    """The source documents: [x, y] tells whether the relation of x to y is in them, shape (V, V)."""
    known = np.random.default_rng(seed).random((entities, entities)) < probability
    np.fill_diagonal(known, False)
    return known


def search_trees(known: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Breadth-first search from every entity, neighbours in ascending order.

    Returns:
        (parents, sizes), both of shape (V, V). Row i is the tree of i: the entity before j on the path from i,
        -1 where there is none; and how many entities the subtree of j has, itself included, 0 where j is i or
        cannot be reached.
    """
    count = len(known)
    neighbours = [np.flatnonzero(row).tolist() for row in known]
    parents = np.full((count, count), -1)
    sizes = np.zeros((count, count), dtype=np.int64)
    for root in range(count):
        parent, size, reached = [-1] * count, [0] * count, [root]
        for here in reached:  # grows while it is read: a queue
            for there in neighbours[here]:
                if parent[there] < 0 and there != root:
                    parent[there] = here
                    reached.append(there)
        for here in reversed(reached[1:]):
            size[here] += 1
            if parent[here] != root:
                size[parent[here]] += size[here]
        parents[root], sizes[root] = parent, size
    return parents, sizes


@dataclass(frozen=True)
class Growth:
    """Exact expectation of the known share, as a mixture of exponentials (equation 2.2).

    Args:
        pairs: ordered pairs of entities, V (V - 1).
        known: pairs in the source documents.
        counts: how many further pairs have a subtree of size k, shape (V,); of several graphs the means.
    """

    pairs: int
    known: float
    counts: Floats

    def at(self, t: ArrayLike) -> Floats:
        """Acc(t), shape of `t`."""
        rounds = np.asarray(t, dtype=float)[..., None]
        missing = np.exp(rounds * np.log1p(-np.arange(len(self.counts)) / self.pairs))
        found: Floats = (self.known + (self.counts * (1 - missing)).sum(-1)) / self.pairs
        return found

    @property
    def limit(self) -> float:
        """Acc as t goes on: the share of pairs that are known or can be reached."""
        return float(self.known + self.counts.sum()) / self.pairs


def growth_of(known: NDArray[np.bool_], sizes: NDArray[np.int64]) -> Growth:
    """The exact growth for one graph."""
    count = len(known)
    counts = np.bincount(sizes[(sizes > 0) & ~known], minlength=count)
    return Growth(count * (count - 1), float(known.sum()), counts.astype(float))


def mean_growth(several: list[Growth]) -> Growth:
    """The mean over graphs; exact, because Acc is linear in the counts."""
    counts = np.mean([one.counts for one in several], axis=0)
    return Growth(several[0].pairs, float(np.mean([one.known for one in several])), counts)


def simulate(
    known: NDArray[np.bool_], parents: NDArray[np.int64], times: ArrayLike, rng: np.random.Generator
) -> Floats:
    """Play the rounds and count what is known at `times` (ascending whole numbers); shares of all pairs."""
    count = len(known)
    have, tree = known.tolist(), parents.tolist()
    total, now, shares = int(known.sum()), 0, []
    for time in np.asarray(times, dtype=int).tolist():
        xs = rng.integers(count, size=time - now)
        ys = (xs + rng.integers(1, count, size=time - now)) % count  # any entity but x, all alike
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            row, before = have[x], tree[x]
            # Past a pair that is known already, all of the path is: it was written together, or is a first step.
            while before[y] >= 0 and not row[y]:
                row[y] = True
                total += 1
                y = before[y]
        now = time
        shares.append(total / (count * (count - 1)))
    return np.array(shares)


def extinction(mean: float) -> float:
    """Chance that a branching process with Poisson(`mean`) children dies out: least root of r = exp(mean (r - 1)).

    The root has a closed form in Lambert's W. For mean <= 1 it is 1.
    """
    from scipy.special import lambertw

    return float(-lambertw(-mean * math.exp(-mean)).real / mean) if mean > 1 else 1.0


def bounds(t: ArrayLike, entities: int, probability: float, epsilon: float = 0.0) -> tuple[Floats, Floats]:
    """Theorem 1's (lower, upper) bounds of Acc(t), each of the shape of `t`; they hold as V grows.

    Args:
        epsilon: slack; the theorem needs it above 0, at 0 the two are what it says to leading order.
    """
    rounds, pairs = np.asarray(t, dtype=float), entities * (entities - 1)
    mean = probability * entities
    reachable = (1 - extinction(mean)) ** 2
    # Above 1 the mean chance per round bounds nothing; that happens for few entities and V p near 1 only.
    fast = min(1.0, (1 + epsilon) * math.log(entities) / (pairs * math.log(mean)))
    lower = (probability + reachable * (1 - (1 - 1 / pairs) ** rounds)) * (1 - epsilon)
    upper = (probability + reachable * (1 - (1 - fast) ** rounds)) * (1 + epsilon)
    return lower, upper


def branching(t: ArrayLike, entities: int, probability: float) -> Floats:
    """Acc(t) if every search tree were a Poisson branching process (A.5), of the shape of `t`.

    An entity l levels above the leaves (a share (m - 1) / m^(l + 1) of all, m = V p) has a subtree of as many
    entities as such a process has in l generations. The mean of s^size is the process's generating function: s
    for no generation, s exp(m (g - 1)) where one generation less has g. Here s = exp(-t / (V (V - 1))).

    It is near, not exact: real trees run out of new entities, so their levels do not grow by m to the end. With
    m = 3 it is at most .03 off between .1 and 2 rounds per pair at V=100, about .06 too low in the middle at
    V=1000.
    """
    mean = probability * entities
    single = np.exp(-np.asarray(t, dtype=float) / (entities * (entities - 1)))
    generating, missing, share = single, np.zeros_like(single), (mean - 1) / mean
    while share > 1e-12:
        missing = missing + share * generating
        generating, share = single * np.exp(mean * (generating - 1)), share / mean
    return probability + (1 - extinction(mean)) ** 2 * (1 - missing)


@dataclass(frozen=True)
class Phases:
    """Where growth bends, in rounds (Lemma A.5.3 proves that such times exist; these are our definition of them).

    Args:
        linear_until: from here on Acc has grown more than 10% (`BEND`) less than the straight line through its
            first round.
        level_from: from here on less than 10% of all growth is still to come.
        straight_in_log: share of Acc's variance between the two that a straight line in log t explains.
        straight_in_t: the same for a straight line in t.
    """

    linear_until: float
    level_from: float
    straight_in_log: float
    straight_in_t: float


def phases(growth: Growth) -> Phases:
    """The three phases of a growth curve; it is concave, so each bend is passed once."""
    from scipy.optimize import brentq

    start = float(growth.at(0))
    first = float(growth.at(1)) - start
    rise = growth.limit - start
    if rise == 0:
        raise UsageError("no pair can be learnt beyond the known ones; raise --entities or --probability")

    def under_line(log_t: float) -> float:
        return (float(growth.at(math.exp(log_t))) - start) / (first * math.exp(log_t)) - (1 - BEND)

    def to_come(log_t: float) -> float:
        return (growth.limit - float(growth.at(math.exp(log_t)))) / rise - BEND

    last = math.log(100 * growth.pairs)  # every chance is 1 / pairs or more: nothing is left by then
    linear, level = (math.exp(brentq(bend, 0.0, last)) for bend in (under_line, to_come))
    between = np.geomspace(linear, level, 200)
    inside = growth.at(between)
    straight = [float(np.corrcoef(axis, inside)[0, 1] ** 2) for axis in (np.log(between), between)]
    return Phases(linear, level, *straight)


def fit_growth(growth: Growth) -> Curve:
    """The paper's three exponentials, fitted at t = 0 and evenly in log t up to ten rounds per pair."""
    times = np.concatenate([[0.0], np.geomspace(1e-3, 10.0, FITTED - 1) * growth.pairs])
    return fit(times, growth.at(times), terms=3)


def broken_from(growth: Growth, entities: int, probability: float) -> dict[str, float | None]:
    """First t, to 1%, at which each bound (at epsilon 0) is on the wrong side of the exact curve; None if never."""
    times = np.concatenate([[0.0], np.geomspace(1.0, 100.0 * growth.pairs, 2000)])
    lower, upper = bounds(times, entities, probability)
    exact = growth.at(times)
    # The curve starts at the share that was drawn, the bounds at p; that is chance, not growth.
    wrong = {"lower": lower - lower[0] > exact - exact[0], "upper": upper - upper[0] < exact - exact[0]}
    return {name: float(times[where.argmax()]) if where.any() else None for name, where in wrong.items()}


def study(entities: int, probability: float, seeds: int) -> dict[str, Any]:
    """Everything, for graphs of the seeds 0, 1, ...; JSON-able.

    Raises:
        UsageError: a setting that the theory does not speak of.
    """
    mean = probability * entities
    if not (entities >= 2 and 0 < probability < 1 and seeds >= 1):
        raise UsageError("--entities must be 2 or more, --probability between 0 and 1, --seeds 1 or more")
    if mean <= 1:
        raise UsageError(
            f"--entities times --probability is {mean:g}; the theory needs more than 1, or no large part of the "
            "graph can be reached"
        )
    times = [round(share * entities * (entities - 1)) for share in TIMES]
    several, played = [], []
    for seed in range(seeds):
        known = known_relations(entities, probability, seed)
        parents, sizes = search_trees(known)
        several.append(growth_of(known, sizes))
        played.append(simulate(known, parents, times, np.random.default_rng([seed, 1])))
    growth = mean_growth(several)
    curve = fit_growth(growth)
    lower, upper = bounds(times, entities, probability)
    # What chance in the rounds leaves between simulation and expectation; both are of the same graphs.
    apart = np.array(played) - [one.at(times) for one in several]
    columns: dict[str, Floats] = {
        "simulation": np.mean(played, axis=0),
        "error": apart.std(0, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.full(len(times), np.nan),
        "exact": growth.at(times),
        "lower": lower,
        "upper": upper,
        "branching": branching(times, entities, probability),
        "fit": curve.at(times),
    }
    rows = [
        {"t": t}
        | {name: None if np.isnan(column[i]) else float(column[i]) for name, column in columns.items()}
        for i, t in enumerate(times)
    ]
    return {
        "entities": entities, "probability": probability, "seeds": seeds, "lambda": mean,
        "extinction": extinction(mean), "C": (1 - extinction(mean)) ** 2, "limit": growth.limit,
        "phases": vars(phases(growth)), "fit": curve.to_json(),
        "bounds_broken_from": broken_from(growth, entities, probability),
        "rows": rows,
    }  # fmt: skip


def show(found: dict[str, Any], console: Console) -> None:
    """Print the table and the figures of `study`."""
    title = f"known share of {found['entities']} entities' pairs, p = {found['probability']:g}"
    table = Table(
        title=f"{title}, mean over {found['seeds']} graphs",
        caption="± one standard error, of what chance in the rounds leaves",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("t", "simulation", "exact", "lower", "upper", "branching", "fit"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        spread = "" if row["error"] is None else f" ± {row['error']:.4f}"
        cells = (f"{row[name]:.4f}" for name in ("exact", "lower", "upper", "branching", "fit"))
        table.add_row(f"{row['t']:,}", f"{row['simulation']:.4f}{spread}", *cells)
    console.print(table)
    bend, curve, broken = found["phases"], found["fit"], found["bounds_broken_from"]
    terms = " ".join(f"{-term['b']:+.4f} x {term['r']:.6g}^x" for term in curve["terms"])
    lines = [
        f"lambda = {found['lambda']:g}, extinction = {found['extinction']:.7f}, C = {found['C']:.6f}; "
        f"the share goes on to {found['limit']:.4f} (the theory's p + C: {found['probability'] + found['C']:.4f})",
        f"straight in t until {bend['linear_until']:,.0f}, then in log t (R² {bend['straight_in_log']:.3f}, "
        f"in t {bend['straight_in_t']:.3f}) until {bend['level_from']:,.0f}, then level",
        f"fit: {curve['a']:.4f} {terms} with x = t/{curve['unit']:g}; root mean square distance "
        f"{curve['residual']:.1e}",
        *(
            f"Theorem 1's {name} bound (epsilon 0) is broken from t = {t:,.0f} on"
            for name, t in broken.items()
            if t is not None
        ),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for theory.json; none is written without it")
    parser.add_argument("--entities", type=int, default=100, help="V")
    parser.add_argument(
        "--probability", type=float, default=0.03, help="p, of a pair being known at the start"
    )
    parser.add_argument("--seeds", type=int, default=20, help="graphs to average over, of seeds 0, 1, ...")
    options = parser.parse_args()
    try:
        found = study(options.entities, options.probability, options.seeds)
        show(found, Console())
        if options.out:
            write_json(options.out / "theory.json", found)
    except UsageError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to {options.out}: {error.strerror or error}")


if __name__ == "__main__":
    main()
