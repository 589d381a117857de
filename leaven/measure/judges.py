"""Judges: what a language model says of a sample, document by document.

    consistency   the 1-5 judge of MGA: does the text still rest on its source? (paper 000, appendix E; tables
                  1, 3)
    pairwise      text and source side by side, both orders asked (paper 002, 4.3 and appendix B)
    repetition    sentences or patterns that repeat (paper 003, 3.5.2 and B.2.3)
    relevance     same topic, event, entity, person, place or object as the source (3.5.2)
    novelty       says something the source does not say (B.2.3)
    copying       almost identical to the source (3.5.2)
    factuality    not checkable / right / wrong, by the judge's own knowledge (B.2.2, table B.5)
    sentences     of single sentences: subjective? if not, supported by the source? (2.5.2: 150 sentences)
    concepts      the concept shared with the source, its domain and kind, and how the two relate (B.2.1)

Every judge sees the same documents: the first `sample` of a corpus in the seeded order, so a larger sample
keeps what was asked. An answer that cannot be used is counted in the figure's note and left out of the share.
What was said of each document is written to ``verdicts``, where `leaven agree` compares it with people's
labels: a judge's figure is worth what that agreement says.

Pairwise: a text wins if one order prefers it and the other does not prefer the source; opposite preferences
are a tie. ``pairwise_position_bias`` is the share of first places among all preferences minus one half: a
fair judge is near 0. Paper 002 asks one order only and tells the judge to ignore it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from leaven.document import Document
from leaven.errors import Rejected, UsageError, nearest
from leaven.generate import mga
from leaven.lm.ask import Ask, Step, StepOverride, override
from leaven.measure.base import Columns, Context, Figure, Options, Sample, ratio, together

PAIRWISE = """Two passages follow, A and B. Decide which of them is the better text to train a language \
model on: clear, coherent, informative, natural, correct, and free of noise. Length is no merit, and which \
of them comes first says nothing.

Passage A:
{a}

Passage B:
{b}

Answer with one JSON object: {"reason": "one or two sentences", "better": "A", "B" or "tie"}"""

REPETITION = """Judge only whether the text above repeats itself in a faulty way: sentences, phrases or \
patterns that come again and again without need, as texts of poor language models do. Refrains, lists and \
terms that a good writer would also repeat do not count.

Answer with one JSON object: {"reason": "one sentence", "repeats": true or false}"""

RELEVANCE = """Above stands a first text, below a second one. Do both concern the same topic, event, \
entity, person, place or object? It is enough that their main matter meets; form and purpose may differ.

Answer with one JSON object: {"reason": "one sentence", "relevant": true or false}

Second text:

{text}"""

NOVELTY = """Above stands a first text, below a second one. Does the second offer a reader of the first \
something of substance that the first does not: other facts, thoughts, explanations, a view or a form that \
shows the matter anew? Mere rewording, shortening or rearranging does not count.

Answer with one JSON object: {"reason": "one sentence", "novel": true or false}

Second text:

{text}"""

COPYING = """Above stands a first text, below a second one. Is the second almost identical to the first, \
apart from spaces, line breaks, punctuation or a few words?

Answer with one JSON object: {"reason": "one sentence", "copied": true or false}

Second text:

{text}"""

FACTUALITY = """Judge whether the text above can be checked against what is generally known, and if so, \
whether it is right.

undefined: mostly opinion, feeling or invention, or about persons and things that nobody outside could look up
true: about things that can be looked up, and you find nothing false in it
false: about things that can be looked up, and at least one statement is false

Answer with one JSON object: {"reason": "one sentence; name what is false", "factuality": "undefined", \
"true" or "false"}"""

SENTENCES = """Below stands one sentence from a text that was written from the text above.

First: is the sentence subjective, that is an interpretation, judgement or opinion on which reasonable \
readers could differ? If it is not, second: does the text above support it, by saying it or by leaving no \
doubt about it?

Answer with one JSON object: {"reason": "one sentence", "subjective": true or false, "supported": true or \
false}

The sentence: {sentence}"""

CONCEPTS = """Above stands a first text, below a second one that grew out of it through an idea that both \
share. Describe both and the idea, each in ten words or fewer, and how the second relates to the first.

first: what the first text is
second: what the second text is, and what makes it different
concept: the shared idea
domain: the field the concept belongs to, one word (culture, health, technology, politics, psychology, \
science, ...)
kind: what kind of concept it is, one word (method, event, comparison, analysis, phenomenon, theory, \
person, ...)
relation: how the second text relates to the first: scope (more general or more specific), perspective \
(another view or manner), function (another purpose), cause (cause or consequence), contrast (set against \
it), form (the same content in another form), continuation, or other

Answer with one JSON object with these six keys, every value a string.

Second text:

{text}"""

STEPS = {
    "consistency": mga.STEPS["judge"],
    "pairwise": Step(prompt=PAIRWISE, max_tokens=512, temperature=0.0, typical_tokens=80),
    "repetition": Step(prompt=REPETITION, max_tokens=512, temperature=0.0, typical_tokens=40),
    "relevance": Step(prompt=RELEVANCE, max_tokens=512, temperature=0.0, typical_tokens=40),
    "novelty": Step(prompt=NOVELTY, max_tokens=512, temperature=0.0, typical_tokens=40),
    "copying": Step(prompt=COPYING, max_tokens=512, temperature=0.0, typical_tokens=40),
    "factuality": Step(prompt=FACTUALITY, max_tokens=512, temperature=0.0, typical_tokens=50),
    "sentences": Step(prompt=SENTENCES, max_tokens=512, temperature=0.0, typical_tokens=50),
    "concepts": Step(prompt=CONCEPTS, max_tokens=512, temperature=0.0, typical_tokens=90),
}

Relation = Literal["scope", "perspective", "function", "cause", "contrast", "form", "continuation", "other"]


class _Verdict(BaseModel):
    reason: str = ""


class Pairwise(_Verdict):
    better: Literal["A", "B", "tie"]


class Repetition(_Verdict):
    repeats: bool


class Relevance(_Verdict):
    relevant: bool


class Novelty(_Verdict):
    novel: bool


class Copying(_Verdict):
    copied: bool


class Factuality(_Verdict):
    factuality: Literal["undefined", "true", "false"]


class SentenceCheck(_Verdict):
    subjective: bool
    supported: bool = False


class Concepts(BaseModel):
    first: str
    second: str
    concept: str
    domain: str
    kind: str
    relation: Relation


@dataclass(frozen=True)
class Verdict:
    """What one judge said of one document (or one of its sentences).

    Args:
        label: the class; what people's labels are compared with.
        item: distinguishes several verdicts on one document (a sentence).
        facts: more of the answer.
    """

    judge: str
    document: Document
    label: Any
    reason: str = ""
    request: str = ""
    item: str = ""
    facts: dict[str, Any] | None = None

    def to_row(self, column: str) -> dict[str, Any]:
        """As the ``verdicts`` table has it."""
        row = {
            "judge": self.judge, "id": self.document.id, "item": self.item, "label": self.label,
            "reason": self.reason, "request": self.request, "column": column,
        }  # fmt: skip
        return row | (self.facts or {})


Share = tuple[str, Callable[[Any], float | None], Literal["higher", "lower"] | None]


@dataclass(frozen=True)
class Judge:
    """How one judge works.

    Args:
        needs_source: it looks at the text beside its source.
        schema: of its answer; `label` reads the class from it.
        shares: (figure, value of a label or None to leave it out, which way is better).
    """

    schema: type[BaseModel]
    label: Callable[[Any], Any]
    shares: tuple[Share, ...]
    needs_source: bool = True


def _is(*wanted: Any) -> Callable[[Any], float]:
    return lambda label: float(label in wanted)


JUDGES = {
    "consistency": Judge(mga.Judgement, lambda found: found.score, (
        ("consistency_score", float, "higher"),
        ("consistency_at_least_3", _is(3, 4, 5), "higher"),
        ("consistency_at_least_4", _is(4, 5), None),
        ("consistency_at_most_2", _is(1, 2), "lower"),
    )),
    "pairwise": Judge(Pairwise, lambda found: found.better, (
        ("pairwise_win", _is("win"), "higher"),
        ("pairwise_tie", _is("tie"), None),
        ("pairwise_loss", _is("loss"), "lower"),
    )),
    "repetition": Judge(
        Repetition, lambda found: found.repeats, (("repetition", float, "lower"),), needs_source=False
    ),
    "relevance": Judge(
        Relevance, lambda found: found.relevant, (("pair_irrelevance", lambda label: 1.0 - label, "lower"),)
    ),
    "novelty": Judge(Novelty, lambda found: found.novel, (("pair_novelty", float, "higher"),)),
    "copying": Judge(Copying, lambda found: found.copied, (("pair_copying", float, "lower"),)),
    "factuality": Judge(Factuality, lambda found: found.factuality, (
        ("factuality_undefined", _is("undefined"), None),
        ("no_factual_error", _is("true"), "higher"),
        ("factual_error", _is("false"), "lower"),
    ), needs_source=False),
    "sentences": Judge(SentenceCheck, lambda found: _sentence_class(found), (
        ("sentences_subjective", _is("subjective"), None),
        ("sentences_supported", lambda label: None if label == "subjective" else float(label == "supported"),
         "higher"),
    )),
    "concepts": Judge(Concepts, lambda found: found.relation, tuple(
        (f"relation_{name}", _is(name), None)
        for name in get_args(Relation)
    )),
}  # fmt: skip


def _sentence_class(found: SentenceCheck) -> str:
    return "subjective" if found.subjective else "supported" if found.supported else "unsupported"


class Config(Options):
    """Options of the judges.

    Args:
        ask: judges by name.
        sample: documents of a corpus that are judged.
        sentences: sentences drawn for `sentences` (150 in paper 003).
        steps: changes to the prompts and their sampling, by judge.
    """

    ask: tuple[str, ...] = ("consistency", "repetition", "relevance", "novelty", "copying")
    sample: int = Field(200, ge=1)
    sentences: int = Field(150, ge=1)
    steps: dict[str, StepOverride] = Field(default_factory=dict)


def models(config: Config) -> tuple[None]:
    """It asks the model named for measuring."""
    return (None,)


async def measure(columns: Columns, config: Config, context: Context) -> list[Figure]:
    """What the judges say of every column."""
    for name in config.ask:
        if name not in JUDGES:
            raise UsageError(f"judges: unknown judge {name!r}; {nearest(name, JUDGES)}")
    bench = Bench(context, override(STEPS, config.steps, "judges"), config)
    found: list[Figure] = []
    rows: list[dict[str, Any]] = []
    judged: dict[str, dict[str, list[Verdict]]] = {}
    for column in columns.values():
        whole = columns[column.part_of] if column.part_of else column
        for name in config.ask:
            if JUDGES[name].needs_source and not any(column.source_of):
                continue  # the sources' own column, or a corpus that was written from nothing
            if whole is column:
                verdicts, failed = await bench.judge(name, column)
                judged.setdefault(column.name, {})[name] = verdicts
                rows += [verdict.to_row(column.name) for verdict in verdicts]
            else:
                inside = {document.id for document in column.documents}
                verdicts = [v for v in judged[whole.name].get(name, ()) if v.document.id in inside]
                failed = Counter[str]()
            found += _figures(name, column, verdicts, failed, context)
    context.tables["verdicts"] = rows
    return found


class Bench:
    """Asks one model; see the top of this file."""

    def __init__(self, context: Context, steps: dict[str, Step], config: Config) -> None:
        self._context, self._steps, self._config = context, steps, config
        self._model = context.open(None)

    async def judge(self, name: str, sample: Sample) -> tuple[list[Verdict], Counter[str]]:
        """(verdicts in the sample's order, reasons why others could not be had)."""
        failed: Counter[str] = Counter()
        found: dict[int, Verdict] = {}
        work = list(self._work(name, sample))
        progress = partial(self._context.progress, f"judge {name}, {sample.name}")

        async def one(place: int, ask: Callable[[], Any]) -> None:
            try:
                found[place] = await ask()
            except Rejected as error:
                failed[error.reason] += 1

        await together([one(i, ask) for i, ask in enumerate(work)], progress)
        return [found[i] for i in sorted(found)], failed

    def _work(self, name: str, sample: Sample) -> Iterator[Callable[[], Any]]:
        chosen = sample.first(self._config.sample)
        beside = list(zip(chosen.documents, chosen.source_of, strict=True))
        if not JUDGES[name].needs_source:
            for document, _ in beside:
                yield partial(self._verdict, name, document, document, {})
            return
        known = [(document, source) for document, source in beside if source is not None]
        if name == "sentences":
            for document, source, sentence in drawn_sentences(
                known, self._config.sentences, self._context.seed
            ):
                yield partial(self._verdict, name, document, source, {"sentence": sentence}, sentence)
        elif name == "pairwise":
            for document, source in known:
                yield partial(self._pairwise, document, source)
        else:
            for document, source in known:
                yield partial(self._verdict, name, document, source, {"text": document.text})

    async def _verdict(
        self, name: str, document: Document, first: Document, variables: dict[str, Any], item: str = ""
    ) -> Verdict:
        step, judge = name, JUDGES[name]
        lineage = document.metadata.get("variables") or {}
        if name == "consistency" and document.metadata.get("method") == "mga":
            # The same request as the method's own judge: what it has asked is not asked again.
            ask = self._ask("mga", first, {"judge": self._steps[name]})
            step, variables = (
                "judge",
                {k: lineage[k] for k in ("pair", "strictness") if k in lineage} | variables,
            )
        else:
            ask = self._ask("judges", first, self._steps)
            variables = variables | {"judged": document.id}
        reply = await ask(step, variables, judge.schema)
        value = reply.value
        reason = getattr(value, "reason", "") or getattr(value, "analysis", "")
        facts = value.model_dump() if name == "concepts" else None
        return Verdict(name, document, judge.label(value), reason, reply.request, item, facts)

    async def _pairwise(self, document: Document, source: Document) -> Verdict:
        """Both orders; the verdict says what is left when they are laid together."""
        ask = self._ask("judges", Document(text="", id=document.id), self._steps)
        named = {"judged": document.id}
        first = await ask("pairwise", {"a": document.text, "b": source.text} | named, Pairwise)
        second = await ask("pairwise", {"a": source.text, "b": document.text} | named, Pairwise)
        orders = (first.value.better, second.value.better)
        reason = f"text first: {first.value.reason} source first: {second.value.reason}"
        return Verdict(
            "pairwise", document, settle(*orders), reason, f"{first.request} {second.request}",
            facts={"text_first": orders[0], "source_first": orders[1]},
        )  # fmt: skip

    def _ask(self, method: str, document: Document, steps: dict[str, Step]) -> Ask:
        return Ask(self._model, document, method, steps, count=lambda texts: [len(text) for text in texts])


def settle(text_first: str, source_first: str) -> str:
    """``win``, ``loss`` or ``tie`` of the text, from the answers with it first and with it second."""
    points = {"A": 1, "tie": 0, "B": -1}[text_first] + {"A": -1, "tie": 0, "B": 1}[source_first]
    return "win" if points > 0 else "loss" if points < 0 else "tie"


def drawn_sentences(
    pairs: Sequence[tuple[Document, Document]], number: int, seed: int
) -> list[tuple[Document, Document, str]]:
    """`number` sentences of at least four words, drawn from all sentences of the texts alike."""
    every = [
        (document, source, sentence)
        for document, source in pairs
        for sentence in re.split(r"(?<=[.!?])[\"')\]]*\s+", " ".join(document.text.split()))
        if len(sentence.split()) >= 4
    ]
    return random.Random(f"{seed} sentences").sample(every, min(number, len(every)))


def _figures(
    name: str, column: Sample, verdicts: Sequence[Verdict], failed: Counter[str], context: Context
) -> Iterator[Figure]:
    asked = len(verdicts) + sum(failed.values())
    note = f"by {context.open(None).name}"
    if failed:
        reasons = ", ".join(f"{reason} {number}" for reason, number in failed.most_common())
        note += f"; {sum(failed.values())} of {asked} answers unusable ({reasons})"
    make = partial(ratio, sample=column, seed=context.seed)
    unit_of = {document.id: unit for document, unit in zip(column.documents, column.units, strict=True)}
    for figure, value_of, better in JUDGES[name].shares:
        rated = [(value_of(v.label), unit_of[v.document.id]) for v in verdicts]
        kept = [(value, unit) for value, unit in rated if value is not None]
        details = {"labels": dict(Counter(str(v.label) for v in verdicts)), "failed": dict(failed)}
        units = [unit for _, unit in kept]
        values = [value for value, _ in kept]
        yield make(figure, numerators=values, units=units, better=better, note=note, details=details)
    if name == "pairwise" and verdicts:
        places = [
            (float(answer == "A") - 0.5, unit_of[v.document.id])
            for v in verdicts
            for answer in ((v.facts or {})["text_first"], (v.facts or {})["source_first"])
            if answer != "tie"
        ]
        values, units = [place for place, _ in places], [unit for _, unit in places]
        yield make("pairwise_position_bias", numerators=values, units=units, note=note)
