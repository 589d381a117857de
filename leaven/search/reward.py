"""What a model has written becomes a reward (paper 003, C.2.1): idea, patch, execution, score.

    completion --without thoughts--> idea --by itself or through an implementer--> patch --run, evaluated--> reward

A failed idea is worth 0, any other its score; where lower is better, 1/score, as the paper takes 1/loss. A completion
that was cut off is a failed idea. Identical patches are run once and are worth the same.
"""

from __future__ import annotations

import ast
import asyncio
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leaven.errors import UsageError, nearest
from leaven.search.archive import Archive, Attempt, Idea
from leaven.search.attempt import Outcome
from leaven.search.environment import Environment, Metric, Parameter, read_parameter, with_parameter
from leaven.search.implement import Implementer
from leaven.search.loop import Tell
from leaven.search.patch import PatchError, apply, as_diff, without_thoughts
from leaven.search.workers import Workers, execute

MOST = 1e18  # of a reward: its square must be a number in float32

_ASSIGNMENT = re.compile(r"([A-Za-z_][\w.]*)\s*=\s*(\S.*)")

IN_WORDS = """
-----

Propose one idea that makes the score above better. Say in a few sentences what changes in which file, and why it \
should help. Answer with the idea and nothing else."""

AS_PATCH = """
-----

Make the score above better. Answer with a patch of the code above: a unified diff (paths with a/ and b/), or a file \
as a whole between a line "=== FILE path" and a line "=== END"."""

AS_SETTINGS = """ Instead of a patch you may give parameters other values, one a line, as NAME = value, and nothing \
else:
"""


@dataclass(frozen=True)
class Completion:
    """What the model has written; `cut` off before it had ended."""

    text: str
    cut: bool = False


def reward(metric: Metric, score: float | None) -> float:
    """What an attempt is worth: 0 if it failed, else its score, or 1/score where lower is better.

    Raises:
        UsageError: a score that would be worth less than a failure, or too much to compute with.
    """
    if score is None:
        return 0.0
    if metric.direction == "higher":
        found, wanted = score, "of 0 or more"
    else:
        found, wanted = (1 / score if score > 0 else -1.0), "above 0, as 1/score is the reward"
    if not 0 <= found <= MOST:
        raise UsageError(
            f"{metric.name} ({metric.direction} is better): score {score:g} cannot be a reward beside the 0 of failed "
            f"ideas; let the evaluation print scores {wanted}, and none beyond {MOST:g} either way"
        )
    return found


def prompt(environment: Environment, in_words: bool) -> str:
    """What the model is asked, the same in all epochs.

    Args:
        in_words: an implementer will turn the idea into a patch.
    """
    text = environment.context() + (IN_WORDS if in_words else AS_PATCH)
    parameters = environment.file.parameters
    if in_words or not parameters:
        return text + "\n"
    lines = [f"{name}: {_values(one)}" for name, one in parameters.items()]
    return text + AS_SETTINGS + "\n".join(lines) + "\n"


def _values(one: Parameter) -> str:
    if one.choices:
        return "one of " + ", ".join(map(repr, one.choices))
    return f"a {'whole ' if one.whole else ''}number from {one.low:g} to {one.high:g}"


def idea_of(text: str, environment: Environment) -> Idea:
    """The idea that an answer is by itself: assignments to the environment's parameters, or else a patch.

    Raises:
        PatchError: it is neither.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [_ASSIGNMENT.fullmatch(line) for line in lines]
    code, parameters = environment.code, environment.file.parameters
    if not (parameters and lines and all(matches)):
        return Idea(text, "rl", patch=as_diff(code, apply(text, code, environment.rules)))
    settings: dict[str, Any] = {}
    changed: Mapping[str, str] = code
    for match in filter(None, matches):
        name = match[1]
        if name not in parameters:
            raise PatchError(f"there is no parameter {name!r}; {nearest(name, parameters)}")
        if name in settings:
            raise PatchError(f"{name} is set twice")
        settings[name] = _value(name, match[2], parameters[name])
        if settings[name] != read_parameter(code, name, parameters[name]):
            changed = with_parameter(changed, name, parameters[name], settings[name])
    if changed == code:
        raise PatchError("the answer changes nothing: these are the values of the baseline")
    return Idea(text, "rl", settings=settings, patch=as_diff(code, changed))


def _value(name: str, text: str, parameter: Parameter) -> Any:
    """Raises:
    PatchError: it is no literal, or not among the parameter's values.
    """
    wanted = PatchError(f"{name} must be {_values(parameter)}, not {text[:80]}")
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of what a model writes Python may think what it likes
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise wanted from error
    if parameter.choices:
        for one in parameter.choices:  # a choice as it was declared: 20 and not 20.0
            if one == value and isinstance(one, bool) == isinstance(value, bool):
                return one
        raise wanted
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wanted
    assert parameter.low is not None and parameter.high is not None
    if not parameter.low <= value <= parameter.high or (parameter.whole and value != int(value)):
        raise wanted
    return int(value) if parameter.whole else value


class Group:
    """Executes the completions of an epoch side by side, and says what each is worth.

    An attempt is in the archive before anything is paid for it. Used within one event loop.

    Args:
        implementer: turns ideas in words into patches; without one a completion must be a patch by itself.
    """

    def __init__(
        self, environment: Environment, archive: Archive, workers: Workers,
        implementer: Implementer | None = None, tell: Tell = lambda *_: None,
    ) -> None:  # fmt: skip
        self._environment, self._archive, self._workers = environment, archive, workers
        self._implementer, self._tell = implementer, tell
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known = {
            one.patch: (one.number, Outcome(one.score, one.reason, one.facts))
            for one in reversed(archive.attempts("rl"))
            if one.patch and one.status in ("done", "failed") and one.ended is not None
        }

    async def attempts(self, epoch: int, said: Sequence[Completion]) -> list[Attempt]:
        """The ended attempt of each completion; what an earlier run of this epoch has ended is not done again.

        Raises:
            Stopped, UsageError: the implementer's model cannot go on for now.
        """
        numbers = self._entered(epoch, said)
        by_number = {one.number: one for one in self._archive.attempts("rl", epoch=epoch)}
        done = 0

        async def one(number: int, completion: Completion) -> None:
            nonlocal done
            await self._one(by_number[number], completion)
            done += 1
            self._tell(f"epoch {epoch}", done, len(said))

        await asyncio.gather(*map(one, numbers, said))
        ended = {one.number: one for one in self._archive.attempts("rl", epoch=epoch)}
        return [ended[number] for number in numbers]

    def _entered(self, epoch: int, said: Sequence[Completion]) -> list[int]:
        """Numbers of the completions' attempts: those of a run that was killed, or new ones."""
        before: defaultdict[str, list[Attempt]] = defaultdict(list)
        for one in reversed(self._archive.attempts("rl", epoch=epoch)):
            before[one.idea].append(one)
        numbers: list[int] = []
        for completion in said:
            text = _idea_text(completion)
            if before[text]:
                numbers.append(before[text].pop().number)
            else:
                numbers += self._archive.add([self._idea(text, completion.cut)], epoch)
        for one in (one for some in before.values() for one in some if one.status in ("idea", "patched")):
            self._archive.failed(
                one.number, "given up: the run was killed, and drew other ideas when it went on"
            )
        return numbers

    def _idea(self, text: str, cut: bool) -> Idea:
        if self._implementer is None and not cut:
            try:
                return idea_of(text, self._environment)
            except PatchError:
                pass  # told when it is that attempt's turn
        return Idea(text, "rl")

    async def _one(self, attempt: Attempt, completion: Completion) -> None:
        if attempt.status in ("done", "failed"):
            return
        patch: str | None = attempt.patch
        if not patch:
            patch, log = await self._patch(attempt.idea, completion.cut)
            self._archive.patched(attempt.number, patch, log)
        if patch:
            self._archive.ended(attempt.number, await self._outcome(attempt.number, patch))

    async def _patch(self, text: str, cut: bool) -> tuple[str | None, str]:
        """(patch or None, log)."""
        if cut:
            return None, "the completion was cut off before its end"
        if not text:
            return None, "the completion holds no idea"
        if self._implementer is not None:
            done = await self._implementer.implement(text)
            return done.patch, done.log
        try:
            return idea_of(text, self._environment).patch, ""
        except PatchError as error:
            return None, " ".join(str(error).split())

    async def _outcome(self, number: int, patch: str) -> Outcome:
        async with self._locks[patch]:
            if patch in self._known:
                first, outcome = self._known[patch]
                return replace(outcome, log=f"not run again: attempt {first} has the same patch",
                               run_seconds=0.0, eval_seconds=0.0, seconds=0.0)  # fmt: skip
            outcome = await execute(self._workers, self._environment, patch)
            self._known[patch] = number, outcome
            return outcome


def _idea_text(completion: Completion) -> str:
    return without_thoughts(completion.text).strip()
