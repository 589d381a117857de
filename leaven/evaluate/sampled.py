"""Multiple choice by sampled chain of thought, closed book or open: for models that can answer in words.

Paper: "Synthetic continued pretraining" (seed 003, chapter 2), sections 2.4 and A.7.1; open book: 2.6 and A.4.

    question --five worked examples before it--> many samples --parse--> right or wrong

Defaults are the paper's: five examples about well-known books (not about the documents), temperature 0.1, 64
samples of at most 300 tokens. Two figures:

    accuracy   over ALL questions: the share of a question's parsed samples that name the right option, and 0 where
               none could be parsed
    parsed     share of samples that name an option at all

The paper takes one parsed sample of every question at random; the share of right ones is that draw's expectation,
without its noise. The reference implementation leaves questions without a parsed sample out of the denominator;
here they count as wrong, and `parsed` says how many samples were none.

Open book (`book`): the chunks that `retrieve.py` finds stand before the question, the best nearest to it unless
`order` says otherwise; how often the right document was among them is reported as recall@k.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.errors import Rejected, UsageError
from leaven.evaluate.candidate import Candidate
from leaven.evaluate.results import Row
from leaven.evaluate.retrieve import Book
from leaven.evaluate.sets import options_of, read_lines
from leaven.lm.base import Origin, Request, Sampling
from leaven.measure.base import Context, together

INSTRUCTION = """Every question below has exactly one right option. Think in a sentence or two about what you know, \
then finish with a line that says 'Answer:' and the letter of that option."""

_ANSWER = re.compile(r"Answer:\s*\(?([A-Z])\b")
_NEXT = "\n\nQuestion:"  # a base model goes on with questions of its own


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        unit: the document it is about, or its own id.
        right: index of the right option.
        thought: the worked example's reasoning; "" for a question to be answered.
    """

    id: str
    unit: str
    text: str
    options: tuple[str, ...]
    right: int
    thought: str = ""

    def asked(self) -> str:
        """With its lettered options, up to where the reasoning begins."""
        lines = [
            f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, self.options, strict=False)
        ]
        return "\n".join([f"Question: {self.text}", *lines, "Reasoning:"])

    def worked(self) -> str:
        """As an example."""
        return f"{self.asked()} {self.thought}\nAnswer: {string.ascii_uppercase[self.right]}"


SHOTS = tuple(
    Question(f"shot {number}", "", text, options, right, thought)
    for number, (text, options, right, thought) in enumerate([
        (
            'Who tells most of the story in "Treasure Island" by Robert Louis Stevenson?',
            ("Long John Silver", "Jim Hawkins", "Captain Flint", "Squire Trelawney"), 1,
            "The story is told by the innkeeper's boy who finds the map. That boy is Jim Hawkins; Silver leads the "
            "mutiny, and Flint is dead before the story begins.",
        ),
        (
            'What does Victor, in "Frankenstein" by Mary Shelley, do with the second creature he has begun?',
            ("He sends it to Geneva.", "He sells it.", "He brings it to life.", "He destroys it."), 3,
            "The creature asks him for a companion. Victor begins to make one, fears what the two might bring about, "
            "and tears it to pieces before it lives.",
        ),
        (
            'Where does Robinson Crusoe, in the novel by Daniel Defoe, spend most of his years alone?',
            ("On an island", "In a prison", "In a monastery", "On a whaling ship"), 0,
            "Crusoe's ship is wrecked and he alone reaches the shore of an island, where he lives for more than "
            "twenty years.",
        ),
        (
            'Whom does Elizabeth Bennet marry at the end of "Pride and Prejudice" by Jane Austen?',
            ("Mr Collins", "Mr Wickham", "Mr Darcy", "Mr Bingley"), 2,
            "She refuses Mr Collins, Wickham elopes with her sister Lydia, and Bingley marries Jane. Elizabeth comes "
            "to think better of Darcy and accepts him.",
        ),
        (
            'In "Alice\'s Adventures in Wonderland" by Lewis Carroll, what does Alice follow down the hole?',
            ("A cat", "A caterpillar", "A rabbit", "A mouse"), 2,
            "At the beginning a White Rabbit with a watch runs past her; she goes after it and falls.",
        ),
    ], 1)
)  # fmt: skip


class SampledSet(BaseModel):
    """A set of questions with options, answered in words.

    Args:
        path: JSONL of {"question", "options", "answer", "document"}, as for `choices`.
        shots: worked examples before the question, of the five built in or from `shots_path`.
        shots_path: JSONL of {"question", "options", "answer", "thought"}: examples of your own.
        samples: answers drawn for every question.
        book: look the question up first; None is closed book.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["sampled"]
    path: PlanPath
    shots: int = Field(5, ge=0)
    shots_path: PlanPath | None = None
    samples: int = Field(64, ge=1)
    temperature: float = Field(0.1, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(300, ge=1)
    book: Book | None = None


def read(name: str, options: SampledSet) -> list[Question]:
    """The questions of a set.

    Raises:
        UsageError: an unreadable file or a bad line of it, or fewer examples than `shots`.
    """
    where = f"evaluate: set {name}"
    examples(name, options)
    return [
        _question(row, identifier, unit, place)
        for place, identifier, unit, row in read_lines(
            options.path, f"{where}: {options.path}", ("question", "options", "answer")
        )
    ]


def examples(name: str, options: SampledSet) -> tuple[Question, ...]:
    """The worked examples.

    Raises:
        UsageError: there are fewer than `shots`, or they are unreadable.
    """
    where = f"evaluate: set {name}"
    known: Sequence[Question] = SHOTS
    if options.shots_path is not None:
        fields = ("question", "options", "answer", "thought")
        lines = read_lines(options.shots_path, f"{where}: {options.shots_path}", fields)
        known = [_question(row, identifier, "", place) for place, identifier, _, row in lines]
    if options.shots > len(known):
        raise UsageError(f"{where}: shots: there are {len(known)} examples, not {options.shots}")
    return tuple(known[: options.shots])


def _question(row: Mapping[str, object], identifier: str, unit: str, place: str) -> Question:
    texts, right = options_of(dict(row), place)
    if len(texts) > len(string.ascii_uppercase):
        raise UsageError(f"{place}: more options than letters")
    return Question(identifier, unit, str(row["question"]), tuple(texts), right, str(row.get("thought", "")))


def prompt(question: Question, shots: Sequence[Question], passages: Sequence[str] = ()) -> str:
    """What the model is asked: instruction, examples, then passages and the question."""
    parts = [INSTRUCTION, *(shot.worked() for shot in shots)]
    parts += [f"Passage {number}:\n{text}" for number, text in enumerate(passages, 1)]
    return "\n\n".join([*parts, question.asked()])


def parse(text: str, options: int) -> int | None:
    """Index of the option that an answer names, or None: the first 'Answer:' with a letter of one.

    Only what comes before the next question counts: a base model goes on with questions of its own.
    """
    found = _ANSWER.search(text.split(_NEXT)[0])
    if found is None:
        return None
    place = string.ascii_uppercase.index(found[1])
    return place if place < options else None


async def rows(
    name: str, candidate: Candidate, questions: Sequence[Question], options: SampledSet, context: Context,
    passages: Mapping[str, Sequence[str]], failed: Counter[str],
) -> list[Row]:  # fmt: skip
    """Figures of one model.

    Args:
        passages: by question, for open book.
        failed: is told why samples could not be had, by reason; they count as not parsed.
    """
    model = candidate.ask(context)
    sampling = Sampling(
        temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens, stop=(_NEXT,)
    )
    shots = examples(name, options)
    picked: dict[str, list[int | None]] = {question.id: [] for question in questions}

    async def one(question: Question, sample: int, text: str) -> None:
        origin = Origin(question.unit, "evaluate", name, {"question": question.id})
        request = Request((("user", text),), sampling, sample=sample, origin=origin)
        try:
            _, answer = await model.answer(request)
        except Rejected as error:
            failed[error.reason] += 1
            picked[question.id].append(None)
            return
        picked[question.id].append(parse(answer.text, len(question.options)))

    work = [
        one(question, sample, text)
        for question in questions
        for text in [prompt(question, shots, passages.get(question.id, ()))]
        for sample in range(options.samples)
    ]
    await together(
        work, lambda done, total: context.progress(f"{candidate.name} answers {name}", done, total)
    )
    return [row for question in questions for row in _rows(question, picked[question.id])]


def _rows(question: Question, picked: Sequence[int | None]) -> Iterator[Row]:
    named = [one for one in picked if one is not None]
    right = sum(one == question.right for one in named)
    yield Row(question.id, question.unit, "accuracy", right / len(named) if named else 0.0, 1.0)
    yield Row(question.id, question.unit, "parsed", float(len(named)), float(len(picked)))
