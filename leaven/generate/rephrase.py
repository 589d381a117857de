"""Rephrasing: the same content in another style or format.

Papers: EntiGraph thesis (seed 003) A.6.2, easy, medium and hard rephrasings, the baseline that EntiGraph is
compared with, after WRAP (Maini et al. 2024); A.3, the question-answer format. The structured formats
(table, FAQ, tutorial, math problem) are those that the Synthetic Data Playbook (Hugging Face, 2026; 90
experiments) found to beat plain rephrasing.

Temperature 1.0 as in the thesis, whose corpus repeats each style many times: `samples` draws each style
that often. A.6.2 speaks of four styles and lists three; the three are here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leaven.document import Document
from leaven.lm.ask import Ask, Step, in_order

_KEEP = (
    "Keep every fact, name, number and event of the text, and the order of events where it matters; "
    "mention the title and the author once if they are given. Add nothing that the text does not say or "
    "plainly imply. Write only the new text, without any remark about it."
)

EASY = f"""Retell the text above for a small child. Use short, simple sentences and only very common \
words; where a hard word cannot be avoided, say at once what it means.
{_KEEP}"""

MEDIUM = f"""Rewrite the text above as a well-edited encyclopedia would put it: clear, varied, neutral \
prose in good standard English, in your own words throughout.
{_KEEP}"""

HARD = f"""Rewrite the text above for learned specialists: dense, terse and exact, with a demanding \
vocabulary and involved syntax, in your own words throughout.
{_KEEP}"""

QA = f"""Turn the text above into questions and answers that together cover all of it. Name the text or \
its people in each question, so that it can be understood alone. Put "Question:" before each question, \
"Answer:" before each answer on the next line, and an empty line between pairs.
{_KEEP}"""

TABLE = f"""Bring the information of the text above into one or more Markdown tables with well-chosen \
columns, each under a heading and followed by two or three sentences that say what the table shows. What \
does not fit into a table goes into a short closing paragraph.
{_KEEP}"""

FAQ = f"""Turn the text above into a page of frequently asked questions: the questions a curious reader \
would really have, grouped under headings from the most basic to the most searching, each answered in full \
sentences.
{_KEEP}"""

TUTORIAL = f"""Turn the text above into a tutorial that leads a learner through its content step by step: \
what it is about and why it matters, the background that is needed, numbered steps or stages, and a \
recapitulation.
{_KEEP}"""

MATH = """Write a word problem in mathematics set in the world of the text above and built on quantities, \
times or relations that it mentions. State everything the solver needs, then solve it step by step under \
the heading "Solution", and end with the result on a line of its own. Take facts from the text as they \
are; any quantity you add must be called an assumption. Write only the problem and its solution."""

# Typical lengths of easy, medium, hard and qa: measured on the recorded stories (800 words each).
STEPS = {
    "easy": Step(prompt=EASY, max_tokens=4096, typical_ratio=0.5),
    "medium": Step(prompt=MEDIUM, max_tokens=4096, typical_ratio=0.55),
    "hard": Step(prompt=HARD, max_tokens=4096, typical_ratio=0.6),
    "qa": Step(prompt=QA, max_tokens=4096, typical_ratio=0.7),
    "table": Step(prompt=TABLE, max_tokens=4096, typical_ratio=0.5),
    "faq": Step(prompt=FAQ, max_tokens=4096, typical_ratio=0.7),
    "tutorial": Step(prompt=TUTORIAL, max_tokens=4096, typical_ratio=0.7),
    "math": Step(prompt=MATH, max_tokens=2048, typical_tokens=400),
}

Style = Literal["easy", "medium", "hard", "qa", "table", "faq", "tutorial", "math"]


class Config(BaseModel):
    """Options of `rephrase`.

    Args:
        styles: which of the styles to write; each is one request per sample.
        samples: draws of each style.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    styles: tuple[Style, ...] = ("easy", "medium", "hard")
    samples: int = Field(1, ge=1)


async def expand(document: Document, ask: Ask, config: Config) -> AsyncIterator[Document]:
    """One document per style and sample."""
    writing = (
        ask.write(style, {"style": style}, sample)
        for sample in range(config.samples)
        for style in config.styles
    )
    async for written in in_order(writing):
        yield written
