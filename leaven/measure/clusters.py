"""LLM cluster-agent: how many kinds of text a language model sees in a few of them.

Paper: "On the diversity of synthetic data and its impact on training large language models" (seed 001),
section 2.1 and appendix D.

    M x (J texts --propose--> metadata and metrics) --gather--> the most frequent of each --summarise-->
    criteria N x (K texts --cluster, by the criteria--> groups --verify--> valid groups)        D = mean of C
    / S

C is the number of valid groups of a round and S the mean number of texts in them, so D lies between 1/K (all
alike) and K (all different) and higher is more diverse. Defaults are the paper's: K = 10, N = 5000, J = 5,
M = 100 (tables 9 and 10: other K spread more, N = 1000 gave 3.71 +- 0.25 where 5000 gave 3.99 +- 0.05).

What a round counts (the paper leaves it open):
- A text named in no group is a group of its own; one named in several stays in the first; empty groups and
  numbers that are no text are dropped. If that touches more than a fifth of the texts, the answer is no
  partition and the round is rejected. Repaired and rejected rounds are counted in the figure's note.
- A group found invalid is removed with its texts (paper 2.1: verification removes unreasonable clusters;
  table
  10c: without it the score spreads ten times as much). So C and S are of the valid groups. A round without a
  valid group is rejected. A group the verifier does not speak of is valid; single texts always are.

Rounds stop at N, or as soon as the 95% interval is narrower than `stop_at`, looked at after every `batch`
rounds. Round i shows the same texts whatever N is, and every answer is in the response store: a run can be
resumed, or extended by a larger N. Texts longer than `words` words are cut off at that.

Deviations: prompts are our own words; the criteria are asked for as lists of name and definition.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leaven.corpus.locate import SOURCE
from leaven.document import Document
from leaven.errors import Rejected, UsageError
from leaven.lm.ask import Ask, Step, StepOverride, override
from leaven.lm.client import LanguageModel
from leaven.measure.base import Columns, Context, Figure, Options, Sample, together
from leaven.measure.statistics import bootstrap_ratio

PROPOSE = """Above stand some texts drawn at random from a large collection. The collection is to be sorted \
into groups so that its variety shows. Find what tells such texts apart.

Propose 3 to 5 attributes (what a text is about, is for, or is made like; where it helps, from the general \
to the particular, with levels divided by slashes) and 3 to 5 scales (something of which a text has more or \
less, with what 1, 2, 3, 4 and 5 mean). Avoid what could be said of any text anywhere.

Answer with one JSON object: {"attributes": [{"name": ..., "definition": ...}], "scales": [{"name": ..., \
"definition": ...}]}"""

GATHER = """Above stand {kind} that many readers proposed for telling the texts of one collection apart, \
each with how often it was proposed and some of the definitions given. Many mean the same under different \
names.

Bring together what means the same, and choose the {number} that came up most and separate texts best. Give \
each a name and one definition so concrete that two people would sort a text alike{scaled}.

Answer with one JSON object: {"chosen": [{"name": ..., "definition": ...}]}. How many: {number}"""

SUMMARISE = """Above stand criteria by which texts will be grouped. Put each into one short sentence that \
tells a reader what to look at.

Answer with one JSON object: {"chosen": [{"name": ..., "definition": ...}]}, with the same names in the same \
order, each definition one sentence."""

CLUSTER = """Above stand {number} numbered texts. Sort them into groups of texts that are alike by the \
criteria below. Every text belongs to exactly one group; a text like no other is a group of its own. \
Neither split what belongs together nor join what merely looks alike.

Criteria:
{criteria}

Answer with one JSON object: {"groups": [{"texts": [numbers of its texts], "reason": "what these texts \
share and no other group has, by the criteria"}]}"""

VERIFY = """Above stand {number} numbered texts. Somebody sorted them into the groups below and gave \
reasons. Check every group against its texts: does the reason hold for all of them, and are they really of \
one kind?

Groups:
{groups}

Answer with one JSON object: {"groups": [{"group": number of the group, "reason": one sentence, "valid": \
true or false}]}. A group of a single text is always valid."""

STEPS = {
    "propose": Step(prompt=PROPOSE, max_tokens=2048, typical_tokens=500),
    "gather": Step(prompt=GATHER, max_tokens=2048, temperature=0.0, typical_tokens=500),
    "summarise": Step(prompt=SUMMARISE, max_tokens=1024, temperature=0.0, typical_tokens=250),
    "cluster": Step(
        prompt=CLUSTER, max_tokens=2048, temperature=0.0, typical_tokens=400,
        typical_answer=json.dumps({"groups": [{"texts": [i, i + 5]} for i in range(1, 6)]}),
    ),
    "verify": Step(
        prompt=VERIFY, max_tokens=2048, temperature=0.0, typical_tokens=200,
        typical_answer=json.dumps({"groups": []}),
    ),
}  # fmt: skip

MOST_REPAIRED = 0.2  # share of a round's texts that may be missing or named twice
LEAST_ROUNDS = 10  # before the stopping rule is looked at
SHOWN = 60  # proposals shown when they are gathered, the most frequent first
DEFINITIONS = 3  # of each


class Config(Options):
    """Options of the cluster-agent.

    Args:
        samples: K, texts in a round.
        rounds: N, most rounds.
        stop_at: stop once the 95% interval is narrower than this; None goes on to `rounds`.
        proposal_samples: J, texts shown when criteria are proposed.
        proposals: M, proposals.
        criteria: attributes chosen, and as many scales.
        words: texts are cut off after so many words.
        batch: rounds asked at once.
        groups: score the groups of the corpus (a column for each method, say) as well; each costs as much as
            the whole.
        steps: changes to the prompts and their sampling.
    """

    samples: int = Field(10, ge=2)
    rounds: int = Field(5000, ge=2)
    stop_at: float | None = Field(None, gt=0)
    proposal_samples: int = Field(5, ge=1)
    proposals: int = Field(100, ge=1)
    criteria: int = Field(5, ge=1)
    words: int = Field(300, ge=10)
    batch: int = Field(50, ge=1)
    groups: bool = False
    steps: dict[str, StepOverride] = Field(default_factory=dict)


class _Answer(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)


class Criterion(_Answer):
    """Something texts differ in."""

    name: str = Field(min_length=1)
    definition: str = Field(min_length=1)


class Proposal(_Answer):
    """Answer to `propose`."""

    attributes: list[Criterion] = Field(min_length=1)
    scales: list[Criterion] = Field(min_length=1)


class Chosen(_Answer):
    """Answer to `gather` and `summarise`."""

    chosen: list[Criterion] = Field(min_length=1)


class Group(_Answer):
    """Some of a round's texts, by their numbers from 1."""

    texts: list[int]
    reason: str = ""


class Grouping(_Answer):
    """Answer to `cluster`."""

    groups: list[Group] = Field(min_length=1)


class Check(_Answer):
    """What the verifier says of one group, by its number from 1."""

    group: int
    valid: bool
    reason: str = ""


class Checks(_Answer):
    """Answer to `verify`."""

    groups: list[Check]


@dataclass(frozen=True)
class Round:
    """What one round gave.

    Args:
        score: C / S of the valid groups.
        repaired: whether the partition had to be mended.
    """

    score: float
    repaired: bool


def models(config: Config) -> tuple[None]:
    """It asks the model named for measuring."""
    return (None,)


async def measure(columns: Columns, config: Config, context: Context) -> list[Figure]:
    """The LLM cluster score of every column, all by the criteria of the first."""
    steps = override(STEPS, config.steps, "clusters")
    agent = Agent(context.open(None), config, steps, context)
    criteria: Sequence[Criterion] = ()
    found: list[Figure] = []
    chosen = [one for one in columns.values() if config.groups or one.part_of is None]
    for sample in sorted(chosen, key=lambda one: one.name == SOURCE):
        if len(sample) < config.samples:
            note = f"needs {config.samples} texts"
            found.append(Figure("llm_cluster_score", sample.name, math.nan, n=len(sample), note=note))
            continue
        criteria = criteria or await agent.criteria(sample)
        found.append(await agent.score(sample, criteria))
    return found


class Agent:
    """The pipeline for one model."""

    def __init__(
        self, model: LanguageModel, config: Config, steps: dict[str, Step], context: Context
    ) -> None:
        self._model, self._config, self._steps, self._context = model, config, steps, context

    async def criteria(self, sample: Sample) -> list[Criterion]:
        """The criteria to cluster by: `criteria` attributes and as many scales, one sentence each.

        Raises:
            UsageError: the model proposed nothing usable.
        """
        config, total = self._config, self._config.proposals
        proposals: list[Proposal] = []

        async def propose(number: int) -> None:
            texts = self._draw(sample, config.proposal_samples, f"proposal {number}")
            with suppress(Rejected):
                reply = await self._ask(texts, f"proposal {number}")("propose", {}, Proposal)
                proposals.append(reply.value)

        progress = partial(self._context.progress, "clusters: proposals")
        await together([propose(number) for number in range(total)], progress)
        if not proposals:
            raise UsageError(f"clusters: {self._model.name} gave no usable criteria in {total} proposals")
        attributes = await self._gather([c for one in proposals for c in one.attributes], "attributes", "")
        scaled = ", and say what 1 to 5 mean"
        scales = await self._gather([c for one in proposals for c in one.scales], "scales", scaled)
        chosen = attributes + scales
        ask = self._ask([f"{one.name}: {one.definition}" for one in chosen], "criteria")
        try:
            return list((await ask("summarise", {}, Chosen)).value.chosen)
        except Rejected:
            return chosen  # the definitions themselves, only longer

    async def _gather(self, found: Sequence[Criterion], kind: str, scaled: str) -> list[Criterion]:
        by_name: dict[str, list[str]] = defaultdict(list)
        for one in sorted(found, key=lambda one: (one.name, one.definition)):
            by_name[" ".join(one.name.lower().split())].append(one.definition)
        ordered = sorted(by_name.items(), key=lambda item: (-len(item[1]), item[0]))[:SHOWN]
        lines = [
            f"{name} (proposed {len(definitions)} times)\n  " + "\n  ".join(definitions[:DEFINITIONS])
            for name, definitions in ordered
        ]
        number = self._config.criteria
        variables = {"kind": kind, "number": number, "scaled": scaled}
        try:
            reply = await self._ask(lines, kind)("gather", variables, Chosen)
            return list(reply.value.chosen[:number])
        except Rejected:
            return [Criterion(name=name, definition=definitions[0]) for name, definitions in ordered[:number]]

    async def score(self, sample: Sample, criteria: Sequence[Criterion]) -> Figure:
        """D of one sample with its interval over rounds."""
        config = self._config
        rounds: dict[int, Round] = {}
        rejected: dict[str, int] = defaultdict(int)

        async def one(number: int) -> None:
            try:
                rounds[number] = await self._round(sample, criteria, number)
            except Rejected as error:
                rejected[error.reason] += 1

        value, interval, asked = math.nan, None, 0
        while asked < config.rounds:
            upto = min(config.rounds, asked + config.batch)
            await together([one(number) for number in range(asked, upto)])
            asked = upto
            self._context.progress(f"clusters of {sample.name}", asked, config.rounds)
            # In the order of their numbers: the figure must not depend on which answer came first.
            scores = [rounds[number].score for number in sorted(rounds)]
            value, interval = bootstrap_ratio(scores, seed=self._context.seed)
            narrow = interval is not None and config.stop_at and interval.high - interval.low < config.stop_at
            if narrow and len(scores) >= LEAST_ROUNDS:
                break
        scores = [rounds[number].score for number in sorted(rounds)]
        error = float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else None
        repaired = sum(one.repaired for one in rounds.values())
        details: dict[str, Any] = {
            "criteria": [one.model_dump() for one in criteria], "rounds": asked, "scores": scores,
            "standard_error": error, "repaired": repaired, "rejected": dict(rejected),
            "K": config.samples, "model": self._model.name,
        }  # fmt: skip
        note = f"{len(scores)} of {asked} rounds of {config.samples}"
        if repaired or rejected:
            note += f"; {repaired} repaired, {sum(rejected.values())} rejected"
        return Figure(
            "llm_cluster_score", sample.name, value, interval, len(scores), "round", "higher", note=note,
            details=details,
        )  # fmt: skip

    async def _round(self, sample: Sample, criteria: Sequence[Criterion], number: int) -> Round:
        texts = self._draw(sample, self._config.samples, f"round {number}")
        ask = self._ask([f"Text {i}:\n{text}" for i, text in enumerate(texts, 1)], f"round {number}")
        lines = [f"{one.name}: {one.definition}" for one in criteria]
        reply = await ask("cluster", {"number": len(texts), "criteria": lines}, Grouping)
        groups, repaired = partition([one.texts for one in reply.value.groups], len(texts))
        reasons = {tuple(one.texts): one.reason for one in reply.value.groups}
        shown = [
            f"Group {i}: texts {', '.join(map(str, group))}. {reasons.get(tuple(group), '')}".strip()
            for i, group in enumerate(groups, 1)
        ]
        checks = await ask("verify", {"number": len(texts), "groups": shown}, Checks)
        invalid = {check.group for check in checks.value.groups if not check.valid}
        valid = [group for i, group in enumerate(groups, 1) if i not in invalid or len(group) == 1]
        return Round(cluster_score(valid), repaired)

    def _draw(self, sample: Sample, number: int, purpose: str) -> list[str]:
        rng = random.Random(f"{self._context.seed} {purpose}")
        chosen = rng.sample(range(len(sample)), min(number, len(sample)))
        return [_shortened(sample.texts[i], self._config.words) for i in chosen]

    def _ask(self, texts: Sequence[str], name: str) -> Ask:
        document = Document(text="\n\n".join(texts), id=name)
        return Ask(
            self._model, document, "clusters", self._steps, count=lambda texts: [len(one) for one in texts]
        )


def partition(groups: Sequence[Sequence[int]], number: int) -> tuple[list[list[int]], bool]:
    """The groups as a partition of 1..`number`, and whether they had to be mended.

    Raises:
        Rejected: more than a fifth of the texts were missing, named twice, or not there.
    """
    seen: set[int] = set()
    wrong: set[int] = set()
    found: list[list[int]] = []
    for group in groups:
        kept = []
        for text in group:
            if text in seen or not 1 <= text <= number:
                wrong.add(text)
            else:
                seen.add(text)
                kept.append(text)
        if kept:
            found.append(kept)
    missing = [text for text in range(1, number + 1) if text not in seen]
    if len(wrong) + len(missing) > MOST_REPAIRED * number:
        raise Rejected("no partition", f"missing {missing}, repeated or unknown {sorted(wrong)}")
    return found + [[text] for text in missing], bool(wrong or missing or len(found) < len(groups))


def cluster_score(groups: Sequence[Sequence[int]]) -> float:
    """C / S = number of groups / mean number of texts in them.

    Raises:
        Rejected: there is no group.
    """
    if not groups:
        raise Rejected("no valid group", "the verifier found every group invalid")
    return len(groups) ** 2 / sum(map(len, groups))


def _shortened(text: str, words: int) -> str:
    parts = text.split(maxsplit=words)
    return text if len(parts) <= words else " ".join(parts[:words]) + " ..."
