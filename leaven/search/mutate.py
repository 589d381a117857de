"""An ideator that needs no language model: it changes the parameters that an environment declares.

Every idea is a real patch of the code, applied, run and judged like any other, so that a search goes from end to end
with nothing but a processor; and it is the control for ideators that think.

    fresh     some parameters of the baseline drawn anew; how large a part of them is drawn, too, from one to all
    explore   the same, but of a few such draws the one furthest from all that was tried (of many it would always be a
              corner of the space)
    exploit   two attempts that beat the baseline, the better the likelier: each parameter from one of them, and one
              parameter then moved a little
    random    every parameter drawn anew
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leaven.errors import UsageError
from leaven.search.archive import Attempt, Idea, Kind
from leaven.search.environment import Environment, Parameter, read_parameter, with_parameter
from leaven.search.patch import as_diff

Values = dict[str, Any]

TRIES = 32  # to find an idea that was not tried before
CANDIDATES = 4  # for an explored idea
STEP = 0.15  # standard deviation of a small move, of a number's range
DIGITS = 3


class Mutations:
    """The ideator.

    Args:
        environment: its parameters are what there is to change.
        seed: of all draws.

    Raises:
        UsageError: it declares none.
    """

    def __init__(self, environment: Environment, seed: int = 0) -> None:
        self._parameters = environment.file.parameters
        if not self._parameters:
            raise UsageError(
                f"{environment.folder / 'env.yaml'} declares no 'parameters', so there is nothing to mutate; declare "
                "some, or have ideas from a language model"
            )
        self._code, self._seed = environment.code, seed
        self._metric = environment.file.metric
        self._start = {
            name: _plain(read_parameter(self._code, name, one)) for name, one in self._parameters.items()
        }

    async def ideas(
        self, kind: Kind, count: int, epoch: int, shown: Sequence[Attempt], avoid: Sequence[str]
    ) -> list[Idea]:
        """New ideas, none of which was tried; fewer where there are no more.

        Args:
            shown: attempts it may learn from.
            avoid: ideas of this epoch.
        """
        draw = np.random.default_rng([self._seed, epoch, *kind.encode()])
        tried = [self._start] + [self._start | one.settings for one in shown if one.settings]
        taken = {_key(one) for one in tried}
        said = set(avoid)
        found: list[Idea] = []
        for _ in range(count):
            for _ in range(TRIES):
                values, parents = self._draw(kind, draw, shown, tried)
                idea = self._idea(values, kind, parents)
                if _key(values) not in taken and idea.text not in said:
                    taken.add(_key(values))
                    tried.append(values)
                    said.add(idea.text)
                    found.append(idea)
                    break
        return found

    def _draw(
        self, kind: Kind, draw: np.random.Generator, shown: Sequence[Attempt], tried: Sequence[Values]
    ) -> tuple[Values, tuple[int, ...]]:
        if kind == "random":
            return {name: self._any(name, draw) for name in self._parameters}, ()
        if kind == "exploit":
            return self._combined(draw, shown)
        if kind == "explore":
            candidates = [self._some(draw) for _ in range(CANDIDATES)]
            return max(candidates, key=lambda one: min(self._distance(one, other) for other in tried)), ()
        return self._some(draw), ()

    def _some(self, draw: np.random.Generator) -> Values:
        """The baseline with some parameters drawn anew: a step to a neighbour is as likely as a jump across."""
        number = int(draw.integers(1, len(self._parameters) + 1))
        names = draw.choice(sorted(self._parameters), number, replace=False)
        return self._start | {str(name): self._any(str(name), draw) for name in names}

    def _combined(
        self, draw: np.random.Generator, winners: Sequence[Attempt]
    ) -> tuple[Values, tuple[int, ...]]:
        ranked = sorted(winners, key=lambda one: self._metric.reward(one.score), reverse=True)
        weights = np.array([2.0**-rank for rank in range(len(ranked))])
        number = min(2, len(ranked))
        chosen = [
            ranked[i] for i in draw.choice(len(ranked), number, replace=False, p=weights / weights.sum())
        ]
        first, last = (self._start | one.settings for one in (chosen[0], chosen[-1]))
        values = {name: (first if draw.random() < 0.5 else last)[name] for name in self._parameters}
        moved = str(draw.choice(sorted(self._parameters)))
        values[moved] = self._moved(moved, values[moved], draw)
        return values, tuple(sorted(one.number for one in chosen))

    def _any(self, name: str, draw: np.random.Generator) -> Any:
        one = self._parameters[name]
        if one.choices:
            return _plain(one.choices[int(draw.integers(len(one.choices)))])
        return self._at(one, float(draw.random()))

    def _moved(self, name: str, value: Any, draw: np.random.Generator) -> Any:
        one = self._parameters[name]
        if one.choices:
            return self._any(name, draw)
        return self._at(one, min(1.0, max(0.0, self._where(one, value) + STEP * float(draw.normal()))))

    @staticmethod
    def _at(one: Parameter, place: float) -> float | int:
        """The number at a place between 0 and 1 of a parameter's range."""
        assert one.low is not None and one.high is not None
        if one.log:
            value = math.exp(math.log(one.low) + place * (math.log(one.high) - math.log(one.low)))
        else:
            value = one.low + place * (one.high - one.low)
        if one.whole:
            return round(value)
        return min(one.high, max(one.low, float(f"{value:.{DIGITS}g}")))

    @staticmethod
    def _where(one: Parameter, value: float) -> float:
        assert one.low is not None and one.high is not None
        value = min(one.high, max(one.low, value))
        if one.log:
            return (math.log(value) - math.log(one.low)) / (math.log(one.high) - math.log(one.low))
        return (value - one.low) / (one.high - one.low)

    def _distance(self, one: Values, other: Values) -> float:
        """Between 0 and the number of parameters: numbers by place in their range, choices by being the same."""
        total = 0.0
        for name, parameter in self._parameters.items():
            if parameter.choices:
                total += one[name] != other[name]
            else:
                total += abs(self._where(parameter, one[name]) - self._where(parameter, other[name]))
        return total

    def _idea(self, values: Values, kind: Kind, parents: tuple[int, ...]) -> Idea:
        code: Mapping[str, str] = self._code
        changed = {name: value for name, value in values.items() if value != self._start[name]}
        for name, value in changed.items():
            code = with_parameter(code, name, self._parameters[name], value)
        text = ", ".join(f"{name} {self._start[name]} -> {value}" for name, value in changed.items())
        patch = as_diff(self._code, code) if changed else ""
        return Idea(text or "the baseline", kind, parents, changed, patch)


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that a resumed search compares the same."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _key(values: Values) -> str:
    return repr(sorted(values.items()))
