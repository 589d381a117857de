"""Does a search that learns from what it runs find more than luck does, with the same number of executions?

    evolve      algorithm 1 of paper 003 (chapter 4): variants of what beat the baseline, and what is unlike all tried
    best-of-n   some parameters of the baseline drawn anew, again and again, knowing nothing of what came of it
    random      every parameter drawn anew

All three have their ideas from the embedded ideator, so that no language model and no network is needed, and differ in
nothing but what they do with what came back. Several seeds of the search each; the figure is the best score within the
budget, the difference is taken seed by seed, with a t interval. The best patch of all then meets the baseline on fresh
seeds, as it was searched and with four times the budget: the best of hundreds of scores always looks good.

    python recipes/search_strategies.py                           # half an hour to an hour on two cores
    python recipes/search_strategies.py --environment environments/grpo --setting '' --budget 12 --seeds 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from leaven.errors import UsageError
from leaven.search.analyse import Difference, best_of, paired
from leaven.search.archive import Attempt
from leaven.search.environment import Metric, load
from leaven.search.folder import confirm_best, confirmation_line, opened, search
from leaven.search.loop import Options

ENVIRONMENTS = Path(__file__).resolve().parent.parent / "environments"
STRATEGIES = ("evolve", "best-of-n", "random")


def parser() -> argparse.ArgumentParser:
    """The options; all defaults together are the setting whose figures LOG.md holds."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("runs/search_strategies"), help="folder of the searches")
    add("--environment", type=Path, default=ENVIRONMENTS / "nanogpt")
    add("--setting", default="quick", help="of the environment; empty for none")
    add("--budget", type=int, default=16, help="executions of a search")
    add("--batch", type=int, default=4, help="ideas of an epoch")
    add("--seeds", type=int, default=5, help="searches of each strategy")
    add("--confirm", type=int, default=5, help="fresh seeds of the winner and the baseline")
    add(
        "--confirm-in",
        default="",
        help="another setting in which they meet as well; empty for none of the settings",
    )
    add("--workers", type=int, help="attempts at a time; default as many as the machine has room for")
    return found


def so_far(attempts: Sequence[Attempt], metric: Metric) -> list[float]:
    """Best score after each execution, in the order of their entry; a failure changes nothing.

    Before the first score there is none: the curve begins with the first one that came.
    """
    curve: list[float] = []
    for one in attempts:
        better = one.score is not None and (not curve or metric.better(one.score, curve[-1]))
        curve.append(one.score if better else curve[-1] if curve else float("nan"))  # type: ignore[arg-type]
    return curve


def picture(curves: dict[str, list[list[float]]], baseline: float, metric: str, path: Path) -> None:
    """Best score so far by executions: every search a thin line, the mean of a strategy a thick one."""
    import altair as alt

    points = [
        {"strategy": name, "search": f"{name} {seed}", "executions": place, "best so far": value}
        for name, some in curves.items()
        for seed, curve in enumerate(some)
        for place, value in enumerate(curve, 1)
    ]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("executions:Q", axis=alt.Axis(format="d", tickMinStep=1)),
        color=alt.Color("strategy:N", title=None),
    )
    value = alt.Y("best so far:Q", title=metric, scale=alt.Scale(zero=False))
    thin = base.mark_line(strokeWidth=1, opacity=0.35).encode(y=value, detail="search:N")
    thick = base.mark_line(strokeWidth=3).encode(y=alt.Y("mean(best so far):Q", title=metric))
    rule = alt.Chart(alt.Data(values=[{"y": baseline}])).mark_rule(strokeDash=[4, 4]).encode(y="y:Q")
    (thin + thick + rule).properties(width=460, height=300).save(path)


def table_of(
    best: dict[str, list[float]], differences: dict[str, Difference], executions: dict[str, str]
) -> Table:
    """Best scores by strategy, and how much evolving gains over the others."""
    table = Table(title="best score within the budget", title_justify="left")
    for column in ("strategy", "seed by seed", "mean", "evolve minus it", "executions, failed"):
        table.add_column(column, justify="left" if column in ("strategy", "seed by seed") else "right")
    for name, scores in best.items():
        found = differences.get(name)
        apart = ""
        if found is not None:
            interval = "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
            apart = f"{found.value:+.4f}{interval}"
        listed = " ".join(f"{score:.4f}" for score in scores)
        table.add_row(name, listed, f"{sum(scores) / len(scores):.4f}", apart, executions[name])
    return table


def main() -> None:
    options = parser().parse_args()
    out, console = options.out.resolve(), Console()
    if find_spec("vl_convert") is None:  # before, not after, the work
        raise SystemExit("search_strategies: pictures need the extra 'plot': pip install 'leaven[plot]'")
    try:
        results = compare(options, out, console)
    except UsageError as error:
        raise SystemExit(f"search_strategies: {error}") from error
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(f"{out}/results.json, strategies.png", highlight=False, soft_wrap=True)


def compare(options: argparse.Namespace, out: Path, console: Console) -> dict[str, Any]:
    """Run all searches (what is there already is not run again), print and return what came of them."""
    metric = load(options.environment).file.metric
    curves: dict[str, list[list[float]]] = {}
    best: dict[str, list[float]] = {}
    executions: dict[str, str] = {}
    winners: list[tuple[float, Path]] = []
    baseline = float("nan")
    for seed in range(
        options.seeds
    ):  # a search of each strategy in turn, so that an early look compares like with like
        for name in STRATEGIES:
            place = out / f"{name}-{seed}"
            given = Options(name, options.budget, options.batch, seed, baselines=1)  # type: ignore[arg-type]
            search(
                options.environment, place, given, setting=options.setting or None, most=options.workers,
                console=console,
            ).close()  # fmt: skip
            with opened(place) as archive:
                tried = [one for one in archive.attempts() if one.tried]
                (first,) = archive.attempts("baseline")
            found = best_of(tried, metric)
            if found is None or found.score is None or first.score is None:
                raise UsageError(f"{place}: not one attempt has come to a score")
            baseline = first.score
            curves.setdefault(name, []).append(so_far(tried, metric))
            best.setdefault(name, []).append(found.score)
            winners.append((metric.reward(found.score), place))
    for name in STRATEGIES:
        places = [out / f"{name}-{seed}" for seed in range(options.seeds)]
        counts = [_count(place) for place in places]
        executions[name] = f"{sum(one for one, _ in counts)}, {sum(failed for _, failed in counts)}"
    differences = {name: paired(best["evolve"], best[name]) for name in STRATEGIES if name != "evolve"}
    console.print(f"baseline (one seed): {metric.name} {baseline:.4f}")
    console.print(table_of(best, differences, executions))
    picture(curves, baseline, metric.name, out / "strategies.png")
    place = max(winners)[1]
    confirmed = {}
    for setting in dict.fromkeys((options.setting, options.confirm_in)):
        met = confirm_best(
            place, seeds=options.confirm, setting=setting, most=options.workers, console=console
        )
        confirmed[setting or "no setting"] = vars(met)
        line = confirmation_line(metric, setting, met)
        console.print(f"winner ({place.name}) {line}", highlight=False, markup=False, soft_wrap=True)
    console.print((place / "best.patch").read_text(), highlight=False, markup=False, soft_wrap=True)
    return {
        "baseline": baseline, "best": best, "curves": curves, "winner": place.name, "confirmed": confirmed,
        "differences": {name: vars(one) for name, one in differences.items()}, "executions": executions,
    }  # fmt: skip


def _count(place: Path) -> tuple[int, int]:
    with opened(place) as archive:
        tried = [one for one in archive.attempts() if one.tried]
    return len(tried), sum(one.status == "failed" for one in tried)


if __name__ == "__main__":
    main()
