"""An ideator that is a language model (paper 003, 4.5.1): it is shown the codebase, and what came of ideas before.

    fresh     new ideas, knowing nothing but the codebase
    explore   new ideas, unlike those it is shown: a random part of all that was tried, as much as fits, failures too
    exploit   variants and combinations of attempts that beat the baseline, the best first

Ideas are asked for ten at a time, with the epoch's earlier ones listed to be avoided. An idea that means the same as
one that was tried (by the similarity of their embeddings) is not tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from leaven.errors import Rejected, Stopped
from leaven.lm.ask import fill
from leaven.lm.base import Origin, Request, Sampling
from leaven.lm.client import LanguageModel
from leaven.lm.structured import Malformed, parse
from leaven.search.archive import Attempt, Idea, Kind
from leaven.search.environment import Environment

AT_ONCE = 10
SAME = 0.95  # cosine of two ideas that are one
TRIES = 4  # requests without one new idea before the ideator is given up
CHARACTERS_PER_TOKEN = 3.5  # of code and English, for what fits
Embed = Callable[[Sequence[str]], Any]  # texts -> vectors of unit length, shape (texts, d)

PROMPT = """You are looking for ways to make the score above better. Everything within the task's rules is open: \
other settings, another architecture, another objective, another way to train, to use the data or to average models.

{how}

{shown}{avoid}Give {count} ideas. Each must be one change (or a few that belong together) which can be carried out \
in this codebase alone and tested by one run within the limits. Say for each why it should help and, in a sentence or \
two, what changes in which file. Ideas must differ from each other in substance.

Answer with one JSON object: {"ideas": [{"idea": "what and why", "changes": "what changes in which file"}, ...]}"""

HOW = {
    "fresh": "You have seen nothing but the codebase yet.",
    "explore": "Below is a part of what was tried already, with what came of it; what failed could not be carried out "
    "or broke. Look where nobody has looked yet: propose what is unlike all of it, and learn from the failures.",
    "exploit": "Below are ideas that were tried and beat the baseline, the best first. Build on them: vary the "
    "strongest, combine what should add up, push further what has not reached its limit.",
}


class _Idea(BaseModel):
    idea: str = Field(min_length=1)
    changes: str = ""


class _Ideas(BaseModel):
    ideas: list[_Idea]


class Thinker:
    """The ideator.

    Args:
        embed: for telling whether two ideas are the same.
        context_tokens: of a prompt; what was tried is shown as far as it fits.
        seed: other seeds draw other answers, and show another part of what was tried.
    """

    def __init__(
        self,
        environment: Environment,
        model: LanguageModel,
        embed: Embed,
        *,
        context_tokens: int = 32_000,
        max_tokens: int = 8192,
        seed: int = 0,
    ) -> None:
        self._environment, self._model, self._embed = environment, model, embed
        self._room = context_tokens * CHARACTERS_PER_TOKEN
        self._sampling = Sampling(temperature=1.0, max_tokens=max_tokens)
        self._seed = seed

    async def ideas(
        self, kind: Kind, count: int, epoch: int, shown: Sequence[Attempt], avoid: Sequence[str]
    ) -> list[Idea]:
        """New ideas; fewer if the model has no more.

        Args:
            shown: attempts it may learn from.
            avoid: texts of ideas that are not to come again.

        Raises:
            Stopped: the model gave not one usable idea.
        """
        context = self._environment.context()
        found: list[Idea] = []
        asked = without = 0
        why = ""
        while len(found) < count and without < TRIES:
            wanted = min(AT_ONCE, count - len(found))
            said = [*avoid, *(one.text for one in found)]
            draw = np.random.default_rng([self._seed, epoch, *kind.encode(), asked])
            listed = (
                "Do not give any of these again:\n" + "\n".join(f"- {_short(one)}" for one in said) + "\n\n"
            )
            variables = {"how": HOW[kind], "shown": "", "avoid": listed if said else "", "count": wanted}
            room = self._room - len(context) - len(fill(PROMPT, variables))
            variables["shown"], parents = self._story(kind, shown, draw, room)
            prompt = f"{context}\n\n{fill(PROMPT, variables)}"
            request = Request(
                (("user", prompt),), self._sampling, _Ideas.model_json_schema(),
                sample=self._seed * 10**6 + epoch * 1000 + asked, shared=len(context),
                origin=Origin(method="search", step=kind, variables={"epoch": epoch, "asked": asked}),
            )  # fmt: skip
            asked += 1
            try:
                _, answer = await self._model.answer(request)
                texts = [_text(one) for one in parse(_after_thoughts(answer.text), _Ideas).ideas]
                new = self._new(texts, [*said, *(one.idea for one in shown)])[:wanted]
                why = f"{len(texts)} ideas, all tried already" if texts and not new else "an empty list"
            except (Malformed, Rejected) as error:
                new, why = [], str(error)
            without = 0 if new else without + 1
            found += [Idea(text, kind, parents) for text in new]
        if not found:
            raise Stopped(f"the ideator {self._model.name} gave no usable idea in {asked} answers: {why}")
        return found

    def _story(
        self, kind: Kind, shown: Sequence[Attempt], draw: np.random.Generator, room: float
    ) -> tuple[str, tuple[int, ...]]:
        """What was tried, as far as it fits, and the attempts an idea of this kind goes on from."""
        metric = self._environment.file.metric
        if kind == "exploit":
            order = sorted(shown, key=lambda one: metric.reward(one.score), reverse=True)
        else:
            order = [shown[i] for i in draw.permutation(len(shown))]
        lines: list[str] = []
        numbers: list[int] = []
        left = room - len("Tried:\n\n\n")
        for one in order:
            result = f"FAILED ({one.reason[:200]})" if one.score is None else f"{metric.name} {one.score:.6g}"
            line = f"- {one.idea}\n  -> {result}"
            if len(line) > left:
                break
            left -= len(line) + 1
            lines.append(line)
            numbers.append(one.number)
        story = "Tried:\n" + "\n".join(lines) + "\n\n" if lines else ""
        return story, tuple(numbers) if kind == "exploit" else ()

    def _new(self, texts: Sequence[str], tried: Sequence[str]) -> list[str]:
        """Texts that mean neither what was tried nor what a text before them means."""
        if not texts:
            return []
        vectors = np.asarray(self._embed([*tried, *texts]))
        kept, known = [], list(range(len(tried)))
        for place, text in enumerate(texts, len(tried)):
            if not known or float((vectors[known] @ vectors[place]).max()) < SAME:
                kept.append(text)
                known.append(place)
        return kept


def _text(one: _Idea) -> str:
    return f"{one.idea.strip()}\nChanges: {one.changes.strip()}" if one.changes.strip() else one.idea.strip()


def _short(text: str) -> str:
    return " ".join(text.split())[:200]


def _after_thoughts(text: str) -> str:
    from leaven.search.patch import without_thoughts

    return without_thoughts(text)
