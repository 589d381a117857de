"""Evaluation sets: JSONL files, one item a line, and the kinds that are scored by likelihood.

    answers   {"question", "answer", "document"}             loss of the answer after the question
    choices   {"question", "options", "answer", "document"}  is the right option the likeliest, and how far?
    text      {"text"}                                       loss and perplexity of a held-out text; also by `stage`

`document` names the document an item is about: items about one document are drawn together for intervals. A
set is for evaluation only: nothing of it may be trained on (`clean: decontaminate` checks that).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.config import PlanPath
from leaven.document import field_of
from leaven.errors import UsageError
from leaven.evaluate.results import Row
from leaven.stage import read_stage

Kind = Literal["answers", "choices", "text"]
FIELDS: dict[str, tuple[str, ...]] = {
    "answers": ("question", "answer"),
    "choices": ("question", "options", "answer"),
    "text": ("text",),
}
PROMPT = "Question: {question}\nAnswer:"


class LikelihoodSet(BaseModel):
    """One set scored by likelihood.

    Args:
        path: the file; `stage`: in its place, for texts, ``held_out`` or ``corpus`` of the run.
        sample: most texts of a stage, drawn at random.
        prompt: what stands before an answer or option; ``{question}`` is replaced.
        by: field of the items whose values are also reported one by one, such as the source of held-out texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind
    path: PlanPath | None = None
    stage: Literal["held_out", "corpus"] | None = None
    sample: int = Field(2000, ge=1)
    prompt: str = Field(PROMPT, pattern=r"\{question\}")
    by: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> LikelihoodSet:
        if (self.path is None) == (self.stage is None):
            raise ValueError("give either path or stage")
        if self.stage is not None and self.kind != "text":
            raise ValueError("a stage holds texts; for this kind give a path")
        return self


@dataclass(frozen=True)
class Item:
    """One thing to evaluate.

    Args:
        unit: what intervals draw: the document it is about, or the item.
        prefix: what the model is given.
        continuations: what is scored after it; several for choices.
        right: index of the right continuation.
        group: value of the field `by`.
    """

    id: str
    unit: str
    prefix: str
    continuations: tuple[str, ...]
    right: int = 0
    group: str = ""


def read_lines(
    path: Path, where: str, fields: Sequence[str]
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(place for errors, id, unit, row) of every line of a set; an id is the line's number where it has none.

    Raises:
        UsageError: an unreadable file, a line that is not an item, an id used twice, or no items at all; the
            line's number is named.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{place}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{place}: must be a JSON object")
        missing = [name for name in fields if name not in row]
        if missing:
            raise UsageError(f"{place}: missing {', '.join(missing)}")
        identifier = str(row.get("id", number))
        if identifier in seen:
            raise UsageError(f"{place}: id {identifier!r} is used twice")
        seen.add(identifier)
        yield place, identifier, str(row.get("document", identifier)), row
    if not seen:
        raise UsageError(f"{where}: no items")


def options_of(row: dict[str, Any], place: str) -> tuple[list[str], int]:
    """(options, index of the right one) of a four-choice question or any other number of choices.

    Raises:
        UsageError: too few options, or no index of one.
    """
    texts, right = row["options"], row["answer"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise UsageError(f"{place}: options must be a list of two or more texts")
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(texts):
        raise UsageError(
            f"{place}: answer must be the index of an option (0 to {len(texts) - 1}), not {right!r}"
        )
    return [str(text) for text in texts], right


def read(name: str, options: LikelihoodSet) -> list[Item]:
    """The items of a set.

    Raises:
        UsageError: an unreadable file, or a line that is not an item; its number is named.
    """
    assert options.path is not None
    where = f"evaluate: set {name}: {options.path}"
    found: list[Item] = []
    for place, identifier, unit, row in read_lines(options.path, where, FIELDS[options.kind]):
        if options.by is not None and options.by not in row:
            raise UsageError(f"{place}: missing {options.by}, by which the set is to be reported")
        group = "" if options.by is None else str(row[options.by])
        if options.kind == "text":
            found.append(Item(identifier, unit, "", (str(row["text"]),), group=group))
            continue
        prefix = options.prompt.replace("{question}", str(row["question"]))
        if options.kind == "answers":
            found.append(Item(identifier, unit, prefix, (" " + str(row["answer"]),), group=group))
        else:
            texts, right = options_of(row, place)
            found.append(Item(identifier, unit, prefix, tuple(f" {text}" for text in texts), right, group))
    return found


def of_stage(folder: Path, options: LikelihoodSet) -> list[Item]:
    """Texts of a finished stage; intervals draw the documents that they are chunks of.

    Raises:
        UsageError: `by` names a field that a text does not have.
    """
    documents = list(read_stage(folder))
    if len(documents) > options.sample:
        chosen = np.random.default_rng(0).permutation(len(documents))[: options.sample]
        documents = [documents[i] for i in sorted(chosen.tolist())]
    found: list[Item] = []
    for one in documents:
        group = "" if options.by is None else field_of(one, options.by)
        if options.by is not None and not group:
            raise UsageError(f"evaluate: {folder}: document {one.id} has no {options.by}")
        found.append(Item(one.id, str(one.metadata.get("parent", one.id)), "", (one.text,), group=group))
    return found


def rows(item: Item, scores: Sequence[tuple[float, int]], options: LikelihoodSet) -> Iterator[Row]:
    """An item's figures.

    Args:
        scores: (sum of natural log-probabilities, tokens) of every continuation.
    """
    if len(item.continuations) == 1:
        total, tokens = scores[0]
        figures = {"loss": (-total, float(tokens))}
    else:
        means = [total / max(1, tokens) for total, tokens in scores]
        margin = means[item.right] - max(mean for i, mean in enumerate(means) if i != item.right)
        figures = {"accuracy": (float(margin > 0), 1.0), "margin": (margin, 1.0)}
    for figure, (over, under) in figures.items():
        for group in {"", item.group}:
            yield Row(item.id, item.unit, figure, over, under, group)
        if options.kind == "text":
            for group in {"", item.group}:
                yield Row(item.id, item.unit, "perplexity", over, under, group)
