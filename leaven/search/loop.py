"""The search (paper 003, algorithm 1): ideas, patches, runs, and what was learnt goes into the next ideas.

    baseline n times -> its score and its noise
    epoch 0    N fresh ideas                                     -> patched, run, evaluated, archived
    epoch t    a(t) N variants of what beat the baseline, the rest unlike a random part of all that was tried

Strategies, all under the same number of executions:

    evolve      as above; a(t) grows from 50% to 80%
    best-of-n   fresh ideas only: what the ideator finds without learning
    random      every declared parameter drawn anew: what luck finds

Everything is in the archive before the next step needs it, so a search that was killed goes on where it was; raising
the budget goes on, too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from leaven.errors import UsageError, nearest
from leaven.search.archive import Archive, Attempt, Idea, Kind
from leaven.search.attempt import Outcome
from leaven.search.environment import Environment
from leaven.search.implement import Implementer
from leaven.search.mutate import Mutations
from leaven.search.workers import SEED, Workers, execute
from leaven.stage import fingerprint

Strategy = Literal["evolve", "best-of-n", "random"]
Tell = Callable[[str, int, int | None], None]  # what is being done, how much of it is done, of how much

FIRST_SHARE, SHARE_STEP, EPOCHS_A_STEP, MOST_SHARE = 0.5, 0.1, 2, 0.8
BASELINES = 3


class Ideator(Protocol):
    """Who has ideas: `Mutations` or `Thinker`."""

    async def ideas(
        self, kind: Kind, count: int, epoch: int, shown: Sequence[Attempt], avoid: Sequence[str]
    ) -> list[Idea]:
        """New ideas; fewer where there are no more.

        Args:
            shown: attempts it may learn from.
            avoid: texts of ideas not to be had again.
        """


@dataclass(frozen=True)
class Options:
    """How is searched.

    Args:
        budget: executions, without those of the baseline.
        batch: ideas of an epoch.
        baselines: runs of the baseline with as many seeds.
    """

    strategy: Strategy = "evolve"
    budget: int = 40
    batch: int = 8
    seed: int = 0
    baselines: int = BASELINES

    def check(self) -> None:
        """Raises:
        UsageError: an option that makes no sense.
        """
        if self.strategy not in get_args(Strategy):
            raise UsageError(f"--strategy {self.strategy!r}; {nearest(self.strategy, get_args(Strategy))}")
        for name, least in (("budget", 1), ("batch", 1), ("baselines", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} must be at least {least}, not {getattr(self, name)}")


def exploit_share(epoch: int) -> float:
    """a(t) of algorithm 1, for epochs from 1 on: 50%, and 10% more every second epoch, up to 80%."""
    return min(FIRST_SHARE + SHARE_STEP * (epoch // EPOCHS_A_STEP), MOST_SHARE)


def parts(options: Options, epoch: int, winners: int) -> list[tuple[Kind, int]]:
    """How many ideas of which kind an epoch asks for.

    Args:
        winners: attempts that beat the baseline so far.
    """
    count = min(options.batch, options.budget - epoch * options.batch)
    if options.strategy == "random":
        return [("random", count)]
    if options.strategy == "best-of-n" or epoch == 0:
        return [("fresh", count)]
    exploited = math.floor(exploit_share(epoch) * count + 1e-9) if winners else 0
    return [(kind, n) for kind, n in (("exploit", exploited), ("explore", count - exploited)) if n]  # type: ignore[misc]


class Search:
    """One search over one archive.

    Args:
        implementer: turns ideas without a patch into patches; not needed where all come with one.
        tell, say: show progress; show a line that stays.
    """

    def __init__(
        self,
        environment: Environment,
        archive: Archive,
        ideator: Ideator,
        workers: Workers,
        options: Options,
        *,
        implementer: Implementer | None = None,
        tell: Tell = lambda *_: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        options.check()
        self._environment, self._archive = environment, archive
        self._ideator, self._workers = ideator, workers
        self._options, self._implementer, self._tell, self._say = options, implementer, tell, say
        self._metric = environment.file.metric
        self._random = Mutations(environment, options.seed) if options.strategy == "random" else None

    async def run(self) -> None:
        """Search until the budget is spent or nobody has ideas any more.

        Raises:
            UsageError: the archive is of another search, or the baseline fails.
            Stopped: the ideator or its server has given up.
        """
        await self._begin()
        epoch = 0
        while epoch * self._options.batch < self._options.budget:
            if not self._archive.attempts(epoch=epoch):
                ideas = await self._ideas(epoch)
                if not ideas:
                    self._say(f"epoch {epoch}: nobody has an idea that was not tried")
                    return
                self._archive.add(ideas, epoch)
            await self._finish(epoch)
            epoch += 1

    async def _begin(self) -> None:
        """Make the archive this search's, once the baseline has run with as many seeds as asked for."""
        parameters = self._environment.file.parameters
        own = {
            "environment": self._environment.file.name, "fingerprint": self._environment.fingerprint,
            "strategy": self._options.strategy, "batch": self._options.batch, "seed": self._options.seed,
            "metric": self._metric.model_dump(),
            "parameters": fingerprint({name: one.model_dump() for name, one in parameters.items()}),
        }  # fmt: skip
        self._archive.check(own)
        entered = {one.seed: one for one in self._archive.attempts("baseline")}
        have = [seed for seed, one in entered.items() if one.score is not None]
        missing = [seed for seed in range(self._options.baselines) if seed not in have]
        done = len(have)

        async def one(seed: int) -> Outcome:
            nonlocal done
            outcome = await self._workers.value(self._environment, self._environment.code, seed)
            if outcome.score is None:
                raise UsageError(
                    f"{self._environment.folder}: the baseline fails: {outcome.reason}; mend it before ideas are paid "
                    "for"
                )
            done += 1
            self._tell("baseline", done, self._options.baselines)
            return outcome

        self._tell("baseline", done, self._options.baselines)
        outcomes = await asyncio.gather(*map(one, missing))
        self._archive.claim(own)
        new = [seed for seed in missing if seed not in entered]  # others were entered just before a kill
        numbers = {seed: one.number for seed, one in entered.items()}
        numbers |= zip(
            new, self._archive.add([Idea("the baseline", "baseline")] * len(new), -1, new), strict=True
        )
        for seed, outcome in zip(missing, outcomes, strict=True):
            self._archive.ended(numbers[seed], outcome)
        if missing:
            scores = [one.score for one in self._archive.attempts("baseline") if one.score is not None]
            self._say(f"baseline: {self._metric.name} {', '.join(f'{score:.6g}' for score in scores)}")

    @property
    def _beta(self) -> float:
        """Score of the baseline with the seed that all attempts have: the fairest to compare with."""
        (score,) = (one.score for one in self._archive.attempts("baseline") if one.seed == SEED)
        assert score is not None
        return score

    async def _ideas(self, epoch: int) -> list[Idea]:
        tried = [one for one in self._archive.attempts() if one.tried]
        beta = self._beta
        winners = [one for one in tried if one.score is not None and self._metric.better(one.score, beta)]
        ideas: list[Idea] = []
        for kind, count in parts(self._options, epoch, len(winners)):
            shown = {"exploit": winners, "explore": tried}.get(kind, [])
            # What an ideator may not know it may still be told not to repeat: nobody pays twice for one idea.
            avoid = [one.text for one in ideas]
            if self._random is not None or isinstance(self._ideator, Mutations):
                avoid += [one.idea for one in tried]
            ideas += await (self._random or self._ideator).ideas(kind, count, epoch, shown, avoid)
        return ideas

    async def _finish(self, epoch: int) -> None:
        """Bring every attempt of an epoch to its end."""
        todo = [one for one in self._archive.attempts(epoch=epoch) if one.status in ("idea", "patched")]
        await asyncio.gather(*map(self._one, todo))

    async def _one(self, attempt: Attempt) -> None:
        patch = attempt.patch
        if not patch:
            if self._implementer is None:
                raise UsageError(f"attempt {attempt.number} needs a language model to be turned into a patch")
            done = await self._implementer.implement(attempt.idea)
            self._archive.patched(attempt.number, done.patch, done.log)
            patch = done.patch or ""
        if patch:
            self._archive.ended(attempt.number, await execute(self._workers, self._environment, patch))
        self._show()

    def _show(self) -> None:
        tried = [one for one in self._archive.attempts() if one.tried]
        ended = [one for one in tried if one.status in ("done", "failed")]
        scored = [one for one in ended if one.score is not None]
        best = max(scored, key=lambda one: self._metric.reward(one.score), default=None)
        failed = len(ended) - len(scored)
        what = f"{failed} failed"
        if best is not None:
            what += f", best {best.score:.6g} (attempt {best.number}), baseline {self._beta:.6g}"
            if ended and best.number == max(ended, key=lambda one: one.ended or 0).number:
                self._say(
                    f"attempt {best.number}: {self._metric.name} {best.score:.6g}: {' '.join(best.idea.split())[:160]}"
                )
        self._tell(what, len(ended), self._options.budget)
