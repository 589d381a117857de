"""Closed-book summaries, scored claim by claim beside what people wrote.

Paper: "Synthetic continued pretraining" (seed 003), sections 2.4.2 and A.7.2.

    title, author --short and long request--> the model's summary --split--> claims --judge, beside the source-->
    false, or true and salient, or true and cosmetic;  the same for the human summaries

Figures, for each kind of request by itself (``SET/short``, ``SET/long``):

    salient_claims   true claims that carry the text's main matter, as multiples of the human summaries'
    false_claims     claims that the source contradicts or does not hold, as multiples of the human summaries'
    claims           all claims, likewise

The paper averages each article's ratio; human summaries often have no false claim at all, and then that ratio does not
exist. Here the model's claims are summed over the articles and divided by the sum of the human ones. Where people gave
several summaries of one text, their mean counts. A summary that the judge could not handle is left out for all arms
and counted; an empty one has no claims. Summaries and verdicts are in the response store.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanLocation, PlanPath
from leaven.corpus.locate import Corpus, corpus_at
from leaven.document import Document
from leaven.errors import Rejected, UsageError
from leaven.evaluate.candidate import Candidate
from leaven.evaluate.results import Row
from leaven.evaluate.sets import read_lines
from leaven.lm import ModelConfig
from leaven.lm.ask import Ask, Step, StepOverride, fill, override
from leaven.lm.base import Origin, Request, Sampling
from leaven.lm.client import LanguageModel
from leaven.measure.base import Context, together

REQUESTS = {
    "short": 'In a few sentences, what is "{title}" by {author} about?',
    "long": 'Tell me in full detail what happens in "{title}" by {author}, from beginning to end.',
}

SPLIT = """Above stands a summary. Take it apart into single claims: short sentences that each state one thing that \
could be true or false by itself, with names in place of pronouns. Leave nothing out, add nothing, and do not judge.

Answer with one JSON object: {"claims": ["...", "..."]}"""

JUDGE = """Above stands a text; below, numbered claims about it. For every claim decide from the text alone:

- true: does the text say so, or does it follow from what it says? What the text contradicts or never mentions is \
not true.
- salient: would a reader who did not know this have missed something of what the text is mainly about? A true but \
incidental detail is not salient.

Answer with one JSON object: {"verdicts": [{"number": 1, "true": true or false, "salient": true or false}, ...]} \
with every number once.

{claims}"""

STEPS = {
    "split": Step(prompt=SPLIT, max_tokens=2048, temperature=0.0, typical_tokens=200),
    "judge": Step(prompt=JUDGE, max_tokens=2048, temperature=0.0, typical_tokens=300),
}


class Claims(BaseModel):
    claims: tuple[str, ...]


class Verdict(BaseModel):
    number: int
    true: bool
    salient: bool = False


class Verdicts(BaseModel):
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Article:
    """One text to be summarised from memory.

    Args:
        document: id of the source.
        about: title, author and what else the requests name.
        human: what people wrote.
    """

    id: str
    document: str
    about: Mapping[str, str]
    human: tuple[str, ...]


class ClaimsSet(BaseModel):
    """A set of texts to be summarised closed book.

    Args:
        path: JSONL of {"document", "title", "author", "summary"}; `summary` is a text or a list of them, by people.
        documents: the sources, found by their ids: a run, a stage's folder, or documents of any form.
        requests: by name; ``{title}`` and ``{author}`` are replaced.
        judge: the model that splits and judges; None is the plan's `model`.
        steps: changes to the judge's prompts (`split`, `judge`) and their sampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["claims"]
    path: PlanPath
    documents: PlanLocation
    requests: dict[str, str] = Field(default_factory=lambda: dict(REQUESTS), min_length=1)
    temperature: float = Field(0.7, ge=0)
    max_tokens: int = Field(1024, ge=1)
    judge: ModelConfig | None = None
    steps: dict[str, StepOverride] = Field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        """The sources, found."""
        return corpus_at(self.documents, "sources")[0]


def read(name: str, options: ClaimsSet) -> list[Article]:
    """The articles of a set.

    Raises:
        UsageError: an unreadable file, or a bad line of it.
    """
    where = f"evaluate: set {name}: {options.path}"
    override(STEPS, options.steps, f"evaluate: set {name}")
    found: list[Article] = []
    for place, identifier, _, row in read_lines(options.path, where, ("document", "title", "summary")):
        human = [row["summary"]] if isinstance(row["summary"], str) else row["summary"]
        if not isinstance(human, list) or not human or not all(isinstance(text, str) for text in human):
            raise UsageError(f"{place}: summary must be a text or a list of texts")
        about = {"title": str(row["title"]), "author": str(row.get("author", "its author"))}
        found.append(Article(identifier, str(row["document"]), about, tuple(human)))
    return found


class Judging:
    """Splits summaries into claims and holds them against their sources.

    Raises:
        UsageError: a set names a document that is not among the sources.
    """

    def __init__(self, name: str, articles: Sequence[Article], options: ClaimsSet, context: Context) -> None:
        self._model: LanguageModel = context.open(options.judge)
        self._steps = override(STEPS, options.steps, f"evaluate: set {name}")
        wanted = {article.document for article in articles}
        self._sources = {one.id: one for one in options.corpus.read() if one.id in wanted}
        if missing := sorted(wanted - set(self._sources)):
            raise UsageError(
                f"evaluate: set {name}: document {missing[0]!r} is not in {options.documents} "
                f"({len(missing)} of {len(wanted)} are missing)"
            )

    async def count(self, article: Article, summary: str) -> Counter[str]:
        """Claims of one summary: ``all``, ``false``, ``salient``.

        Raises:
            Rejected: the judge gave no usable answer.
        """
        if not summary.strip():
            return Counter()
        about = {"document": article.document}
        ask = self._ask(Document(text=summary, id=article.document))
        claims = (await ask("split", about, Claims)).value.claims
        if not claims:
            return Counter()
        listed = "\n".join(f"{number}. {claim}" for number, claim in enumerate(claims, 1))
        reply = await self._ask(self._sources[article.document])("judge", {"claims": listed}, Verdicts)
        verdicts = {one.number: one for one in reply.value.verdicts}
        if sorted(verdicts) != list(range(1, len(claims) + 1)):
            detail = f"{len(claims)} claims, verdicts on {sorted(verdicts)}"
            raise Rejected("verdicts do not match", detail, reply.text, reply.request)
        true = [one for one in verdicts.values() if one.true]
        salient = sum(one.salient for one in true)
        return Counter({"all": len(claims), "false": len(claims) - len(true), "salient": salient})

    async def human(self, article: Article) -> dict[str, float]:
        """Mean claims of the human summaries."""
        counts = await asyncio.gather(*(self.count(article, text) for text in article.human))
        return {kind: sum(one[kind] for one in counts) / len(counts) for kind in ("all", "false", "salient")}

    def _ask(self, document: Document) -> Ask:
        return Ask(
            self._model, document, "claims", self._steps, count=lambda texts: [len(text) for text in texts]
        )


async def rows(
    name: str, candidate: Candidate, articles: Sequence[Article], options: ClaimsSet, context: Context,
    judging: Judging, failed: Counter[str],
) -> list[Row]:  # fmt: skip
    """Figures of one model.

    Args:
        failed: is told why summaries could not be had or judged, by reason.
    """
    model = candidate.ask(context)
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens)
    found: list[Row] = []

    async def one(article: Article, kind: str, request: str) -> None:
        origin = Origin(article.document, "evaluate", name, {"article": article.id, "request": kind})
        text = fill(request, article.about)
        try:
            _, answer = await model.answer(Request((("user", text),), sampling, origin=origin))
            counts = await judging.count(article, answer.text)
            human = await judging.human(article)
        except Rejected as error:
            failed[error.reason] += 1
            return
        for figure, key in (("salient_claims", "salient"), ("false_claims", "false"), ("claims", "all")):
            found.append(Row(article.id, article.document, figure, counts[key], human[key], kind))

    work: list[Any] = [
        one(article, kind, request) for article in articles for kind, request in options.requests.items()
    ]
    await together(
        work, lambda done, total: context.progress(f"{candidate.name} summarises {name}", done, total)
    )
    return found
