"""Tell what a run will ask and use, by rehearsing it with stand-in answers and sending nothing.

The method itself runs over the corpus with a `Rehearsal` in the model's place, so the estimate follows the
method's own logic (waves, corrections, judge calls) and needs no second description of it. A request whose
answer is already stored costs nothing. Any other gets a stand-in: real stored answers of the same method,
step and turn, taken in rotation (so that numbers of entities, failed JSON, scores and lengths are those
seen), or, before there are any, an answer made from the schema and the step's typical length.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from leaven.lm.ask import Step
from leaven.lm.base import Answer, Backend, Request, Usage, scoring
from leaven.lm.control import Gate
from leaven.lm.store import ResponseStore, Seen

LEAST_FOR_SLOPE = 8  # answers
TYPICAL_ITEMS = 16  # entities of the recorded stories


@dataclass
class StepEstimate:
    """What one step of one method will ask for.

    Args:
        stored: requests whose answers are already there.
        requests: requests to be sent; `usage` is theirs, `cached` the share of it that follows an
            earlier request about the same document.
        observed: stored answers that the lengths are taken from; 0 means typical lengths.
    """

    stored: int = 0
    requests: int = 0
    usage: Usage = field(default_factory=Usage)
    observed: int = 0

    def __add__(self, other: StepEstimate) -> StepEstimate:
        return StepEstimate(
            self.stored + other.stored,
            self.requests + other.requests,
            self.usage + other.usage,
            self.observed + other.observed,
        )


class Rehearsal:
    """Stands in for a `LanguageModel` and counts.

    Args:
        tokens_per_character: of prompts, where no stored answer tells the server's own count.
    """

    def __init__(
        self,
        backend: Backend,
        store: ResponseStore,
        steps: Mapping[str, Mapping[str, Step]],
        *,
        tokens_per_character: float,
    ) -> None:
        self.backend, self.name = backend, backend.model
        self.gate = Gate(backend.concurrency)
        self.estimates: dict[tuple[str, str], StepEstimate] = defaultdict(StepEstimate)
        self._store, self._steps = store, steps
        self._tokens_per_character = tokens_per_character
        self._seen: dict[tuple[str, str, int], list[Seen]] = defaultdict(list)
        for seen in store.seen(backend.identity):
            self._seen[(seen.method, seen.step, seen.turns)].append(seen)
        self._rotation: dict[tuple[str, str, int], Iterator[Seen]] = {
            group: itertools.cycle(found) for group, found in self._seen.items()
        }
        self._slopes = {group: _slope(found) for group, found in self._seen.items()}
        every = [seen for found in self._seen.values() for seen in found if seen.characters > 200]
        if every:
            sent = sum(seen.characters for seen in every)
            self._tokens_per_character = sum(seen.answer.usage.prompt for seen in every) / sent
        self._asked: set[str] = set()
        self._warm: set[str] = set()

    async def answer(self, request: Request, priority: int = 0) -> tuple[str, Answer]:
        """A stored answer, or a stand-in that is counted."""
        key = request.key(self.backend.identity)
        origin = request.origin
        estimate = self.estimates[(origin.method, origin.step)]
        stored = self._store.find(key, request.sampling.max_tokens)
        if stored is not None:
            estimate.stored += 1
            return key, stored
        answer = self._stand_in(request)
        # The same thing asked twice is sent once. Stand-ins repeat texts that real answers would not, so the
        # variables tell two requests apart even where their prompts came out alike.
        asked = key + repr({k: v for k, v in origin.variables.items() if k != "text"})
        if asked not in self._asked:
            self._asked.add(asked)
            estimate.requests += 1
            estimate.observed = len(self._seen.get(_group(request), ()))
            estimate.usage = estimate.usage + self._usage(request, answer)
        return key, answer

    async def score(self, text: str) -> list[float]:
        """Stand-in log-probabilities; the text's tokens are counted as a prompt."""
        request = scoring(text)
        key = request.key(self.backend.identity)
        estimate = self.estimates[("perplexity", "score")]
        if self._store.find(key, 1) is not None:
            estimate.stored += 1
        elif key not in self._asked:
            self._asked.add(key)
            estimate.requests += 1
            estimate.usage = estimate.usage + Usage(round(len(text) * self._tokens_per_character), 0, 1)
        return [-1.0]

    def _usage(self, request: Request, answer: Answer) -> Usage:
        characters = sum(len(content) for _, content in request.messages)
        prompt = round(characters * self._tokens_per_character)
        cached = 0
        if request.origin.document in self._warm:
            cached = round(request.shared * self._tokens_per_character)
        self._warm.add(request.origin.document)
        return Usage(prompt, cached, answer.usage.completion)

    def _stand_in(self, request: Request) -> Answer:
        group = _group(request)
        rotation = self._rotation.get(group)
        if rotation is not None:
            seen = next(rotation)
            characters = sum(len(content) for _, content in request.messages)
            longer = self._slopes[group] * (characters - seen.characters)
            tokens = max(1, round(seen.answer.usage.completion + longer))
            return replace(seen.answer, usage=Usage(0, 0, tokens))
        step = self._steps[request.origin.method][request.origin.step]
        document_tokens = request.shared * self._tokens_per_character
        tokens = min(step.max_tokens, round(step.typical_tokens + step.typical_ratio * document_tokens))
        if step.typical_answer:
            text = step.typical_answer
        elif request.schema is not None:
            text = orjson.dumps(_example(request.schema, request.schema)).decode()
        else:
            text = "word " * max(1, round(tokens / self._tokens_per_character / 5))
        return Answer(text, "stop", Usage(0, 0, tokens, estimated=True))


def _slope(found: list[Seen]) -> float:
    """Tokens by which an answer grows with a character of its prompt (least squares); 0 for few answers.

    Some steps write in proportion to the document (rephrasing), others do not (relating two entities).
    """
    if len(found) < LEAST_FOR_SLOPE:
        return 0.0
    lengths = [seen.characters for seen in found]
    answers = [seen.answer.usage.completion for seen in found]
    if len(set(lengths)) == 1:
        return 0.0
    return statistics.linear_regression(lengths, answers).slope


def _group(request: Request) -> tuple[str, str, int]:
    return request.origin.method, request.origin.step, len(request.messages)


def _example(schema: dict[str, Any], root: dict[str, Any], name: str = "") -> Any:
    """The simplest value that a JSON schema of ours accepts: lists of a typical length, strings all different
    (equal ones would give equal requests, which are sent once)."""
    if "$ref" in schema:
        return _example(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, name)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], root, name)
    kind = schema.get("type")
    if kind == "boolean":
        return True
    if kind == "object":
        fields = schema.get("properties", {}).items()
        return {key: _example(field, root, f"{name} {key}".strip()) for key, field in fields}
    if kind == "array":
        return [_example(schema["items"], root, f"{name} {i}") for i in range(TYPICAL_ITEMS)]
    if kind in ("integer", "number"):
        return schema.get("maximum", schema.get("minimum", 1))
    return f"typical {name}"
