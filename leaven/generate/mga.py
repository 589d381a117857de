"""MGA: massive genre-audience reformulation.

Paper: "Reformulation for pretraining data augmentation" (seed 000), section 3 and appendix E.

    document --pairs--> 5 (genre, audience) --reformulate--> 5 texts --judge--> those scored 3 or more

Stage 1 (3.2) asks for all pairs of a document in ONE answer, "one pass for many", because asking again and
again for one pair draws similar ones (mode collapse); ``passes: one`` does that, for comparison. The
answer is checked by rule for structure and number: fewer or malformed pairs get one correction turn and
then reject the document; they are never padded.
Stage 2 reformulates under Limited Consistency (3.1): vary style and structure, keep the core facts.
`base` is the paper's setting, `strict` only polishes, `relaxed` takes the text as mere inspiration. By the
paper's judge, Table 3: scored 2 or below 6.65 / 4.86 / 60.19 %, scored 5: 24.67 / 44.38 / 2.66 %; base
trains best, relaxed collapses (figure 5).
The judge scores 1-5 whether the core information of the source is recognisable; added material, another
order and omissions cost nothing (appendix E, prompt 3). Kept: 3 or more, the cut of D_SFT in 3.2.

Deviations, and what the paper leaves open: the prompts are our own words; the paper judges samples and
filters its tool model's training data, here every reformulation may be judged and filtered (`judge: false`
turns that off); sampling temperature 1.0; long sources are chunked by the plan's `chunk_tokens` (the
paper's prompts hold at most 4,096 tokens). The keyword-coverage cut and the pattern cleaning that follow in
3.2 are the filters `coverage` and `tics` of `leaven/clean/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from leaven.document import Document
from leaven.errors import Rejected
from leaven.lm.ask import Ask, Step, in_order

PAIRS = """Think about who else could read the text above, and in what kind of writing it would reach \
them. Propose {pairs} different pairs of a genre and an audience into which the text could be recast \
without losing its main information.

A genre is a kind of written text: say in two or three sentences what it is and what marks its structure, \
tone, style and pace. Text only, nothing that needs pictures or sound to be understood. Range widely, \
beyond the obvious ones.
An audience is a definite group of readers: say in two sentences who they are (age, work, schooling, \
situation, temper) and what they want or cannot stand. Include readers who are indifferent or opposed to \
the subject, not only friendly ones.
No two pairs may resemble each other.

Answer with one flat JSON object with the keys "genre_1", "audience_1" and so on up to the number of \
pairs, every value a string. Number of pairs: {pairs}"""

_REFORMULATE = """Write a new text from the one above, in the genre and for the readers described below.
{manner}
Write in fluent English, begin with the text itself, and do not speak about this task.

Genre: {{genre}}

Readers: {{audience}}"""

BASE = _REFORMULATE.format(
    manner="""First make sure what the text tells: its facts, names, figures, events and relations. Then \
compose a text of the given genre, with the parts and the manner that belong to that genre, which passes \
this core on correctly. Arrange, select, explain and illustrate freely for these readers; new examples and \
framing are welcome as long as nothing contradicts the source and its substance stays recognisable."""
)
STRICT = _REFORMULATE.format(
    manner="""Edit lightly. Keep the course, the content and most of the wording of the text, and change \
only what the genre and these readers clearly require. Do not leave anything out and do not add \
anything."""
)
RELAXED = _REFORMULATE.format(
    manner="""Take no more than inspiration from the text: lift out a few of its themes or ideas, \
generalise them, and build something new and self-contained around them. You are free to depart from the \
content of the source, and to take genre and readers as hints rather than orders."""
)

JUDGE = """Above stands a source text; below stands a text that was written from it. Judge only whether \
the second still rests on the information of the first.

It does not matter for the score if the second text leaves things out, adds things of its own, orders or \
weighs them differently, or uses another style, form or tone. It matters if so little of the source's \
information is left, or so much of it altered, that one could hardly tell that it was written from this \
source.

5: clearly built on the source's information; nothing of it is falsified
4: built on it, with small distortions
3: the source is recognisable, parts of its information are distorted or vague
2: only a loose relation in theme; hardly any information of the source
1: nothing of the source's information

Be strict. Compare point by point first, then answer with one JSON object with the keys "analysis" (two or \
three sentences) and "score" (an integer from 1 to 5).

The text to be judged:

{text}"""

STEPS = {
    "pairs": Step(prompt=PAIRS, max_tokens=2048, typical_tokens=600),
    "reformulate_base": Step(prompt=BASE, max_tokens=4096, typical_ratio=0.6),
    "reformulate_strict": Step(prompt=STRICT, max_tokens=4096, typical_ratio=0.5),
    "reformulate_relaxed": Step(prompt=RELAXED, max_tokens=4096, typical_ratio=0.35),
    "judge": Step(prompt=JUDGE, max_tokens=1024, temperature=0.0, typical_tokens=60),
}

Strictness = Literal["base", "strict", "relaxed"]


class Config(BaseModel):
    """Options of `mga`.

    Args:
        pairs: genre-audience pairs per document; 5 in the paper.
        passes: ``many`` asks for all pairs in one answer, ``one`` for one pair in each of `pairs` answers.
        first: reformulate only the first so many pairs; None takes all.
        strictness: which variants to write of every pair.
        judge: score every reformulation; costs one request each.
        keep_score: least score that is kept; 3 in the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    pairs: int = Field(5, ge=1, le=20)
    passes: Literal["many", "one"] = "many"
    first: int | None = Field(None, ge=1)
    strictness: tuple[Strictness, ...] = ("base",)
    judge: bool = True
    keep_score: int = Field(3, ge=1, le=5)


class Judgement(BaseModel):
    """The judge's answer. A wrapper with a single key around the two fields is accepted."""

    analysis: str = ""
    score: int = Field(ge=1, le=5)

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        if isinstance(value, dict) and "score" not in value and len(value) == 1:
            inner = next(iter(value.values()))
            return inner if isinstance(inner, dict) else value
        return value


def pairs_schema(number: int) -> type[BaseModel]:
    """Schema of an answer with exactly `number` non-empty pairs under flat keys."""
    text = (str, Field(min_length=1))
    fields: dict[str, Any] = {}
    for i in range(1, number + 1):
        fields |= {f"genre_{i}": text, f"audience_{i}": text}
    config = ConfigDict(str_strip_whitespace=True)
    return create_model(f"Pairs{number}", __config__=config, **fields)


async def genre_audience_pairs(ask: Ask, config: Config) -> list[tuple[str, str]]:
    """Stage 1: `config.pairs` (genre, audience) pairs.

    Raises:
        Rejected: the answer has too few or malformed pairs, also after the correction turn.
    """
    per_answer = config.pairs if config.passes == "many" else 1
    schema = pairs_schema(per_answer)
    found: list[tuple[str, str]] = []
    for sample in range(config.pairs // per_answer):
        reply = await ask("pairs", {"pairs": per_answer}, schema, sample)
        answer = reply.value.model_dump()
        found += [(answer[f"genre_{i}"], answer[f"audience_{i}"]) for i in range(1, per_answer + 1)]
    return found


async def reformulate(
    ask: Ask, config: Config, number: int, genre: str, audience: str, strictness: Strictness
) -> Document | None:
    """Stage 2 and the judge: one reformulation, or None if it was rejected."""
    variables = {"pair": number, "strictness": strictness, "genre": genre, "audience": audience}
    written = await ask.write(f"reformulate_{strictness}", variables)
    if written is None or not config.judge:
        return written
    try:
        verdict = await ask(
            "judge", {"pair": number, "strictness": strictness, "text": written.text}, Judgement
        )
    except Rejected as error:
        ask.discard(written, f"judge: {error.reason}", error.detail)
        return None
    written.metadata |= {"score": verdict.value.score, "judge": verdict.request}
    if verdict.value.score < config.keep_score:
        ask.discard(
            written,
            f"judged below {config.keep_score}",
            f"score {verdict.value.score}: {verdict.value.analysis}",
        )
        return None
    return written


async def expand(document: Document, ask: Ask, config: Config) -> AsyncIterator[Document]:
    """Up to `pairs` x `strictness` reformulations of the document."""
    pairs = await genre_audience_pairs(ask, config)
    writing = (
        reformulate(ask, config, number, genre, audience, strictness)
        for strictness in config.strictness
        for number, (genre, audience) in enumerate(pairs[: config.first], 1)
    )
    async for written in in_order(writing):
        yield written
