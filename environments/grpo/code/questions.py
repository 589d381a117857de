"""Questions with answers that can be checked, and the budget. Protected: nobody may change this file.

A question is a sum of two numbers of DIGITS digits, "07+45=", and its answer "52" and an end of line. Which
questions are hidden follows from their numbers alone (`hidden`): about a fifth. Training draws from the others,
the evaluation from the hidden ones, so the two never share a question.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence

DIGITS = int(os.environ.get("DIGITS", "2"))
BUDGET_ANSWERS = int(os.environ.get("BUDGET_ANSWERS", "24576"))  # how many answers a run may have checked
ALPHABET = "\n0123456789+="
END = 0  # index of the end of line, which closes an answer
PROMPT = 2 * DIGITS + 2  # characters of a question
ANSWER = DIGITS + 2  # most characters of an answer, its end included

Question = tuple[int, int]


def hidden(question: Question) -> bool:
    """Whether the question belongs to the evaluation."""
    return zlib.crc32(f"{question[0]}+{question[1]}".encode()) % 5 == 0


def draw(count: int, dice: random.Random, of_hidden: bool = False) -> list[Question]:
    """So many questions, drawn with replacement."""
    found: list[Question] = []
    while len(found) < count:
        question = dice.randrange(10**DIGITS), dice.randrange(10**DIGITS)
        if hidden(question) == of_hidden:
            found.append(question)
    return found


def encode(text: str) -> list[int]:
    return [ALPHABET.index(character) for character in text]


def prompt(question: Question) -> list[int]:
    """The question as PROMPT indices into ALPHABET."""
    return encode(f"{question[0]:0{DIGITS}}+{question[1]:0{DIGITS}}=")


def correct(question: Question, answer: Sequence[int]) -> bool:
    """Whether the answer, indices into ALPHABET up to its first END, is the sum, and is closed."""
    right = encode(f"{sum(question)}\n")
    return list(answer[: len(right)]) == right


class Checker:
    """The reward: 1 for a correct answer, 0 for any other. It may be asked BUDGET_ANSWERS times."""

    def __init__(self) -> None:
        self.checked = 0

    def fraction(self) -> float:
        """Share of the budget that is used, from 0 to 1: what a schedule goes by."""
        return self.checked / BUDGET_ANSWERS

    def allows(self, answers: int) -> bool:
        return self.checked + answers <= BUDGET_ANSWERS

    def rewards(self, questions: Sequence[Question], answers: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each answer to the question at the same place."""
        if not self.allows(len(answers)):
            raise SystemExit(f"the budget does not allow {len(answers)} answers more after {self.checked}")
        if any(hidden(question) for question in questions):
            raise SystemExit("a hidden question was asked in training")
        self.checked += len(answers)
        return [float(correct(q, a)) for q, a in zip(questions, answers, strict=True)]
