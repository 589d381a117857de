"""Evaluation sets: JSONL files of questions, choices or texts, as prefix and continuation.

    answers   {"question", "answer", "document"}             loss of the answer after the question
    choices   {"question", "options", "answer", "document"}  is the right option the likeliest, and how far?
    text      {"text"}                                       loss of a held-out text

`document` names the document an item is about: items about one document are drawn together for intervals. A
set is for evaluation only: nothing of it may be trained on (`clean: decontaminate` checks that).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.errors import UsageError

Kind = Literal["answers", "choices", "text"]
FIELDS: dict[str, tuple[str, ...]] = {
    "answers": ("question", "answer"),
    "choices": ("question", "options", "answer"),
    "text": ("text",),
}
PROMPT = "Question: {question}\nAnswer:"


class EvaluationSet(BaseModel):
    """One set.

    Args:
        prompt: what stands before an answer or option; ``{question}`` is replaced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind
    path: PlanPath
    prompt: str = Field(PROMPT, pattern=r"\{question\}")


@dataclass(frozen=True)
class Item:
    """One thing to evaluate.

    Args:
        unit: what intervals draw: the document it is about, or the item.
        prefix: what the model is given.
        continuations: what is scored after it; several for choices.
        right: index of the right continuation.
    """

    id: str
    unit: str
    prefix: str
    continuations: tuple[str, ...]
    right: int = 0


def read_set(name: str, options: EvaluationSet) -> list[Item]:
    """The items of a set.

    Raises:
        UsageError: an unreadable file, or a line that is not an item; its number is named.
    """
    where = f"evaluate: set {name}: {options.path}"
    try:
        lines = options.path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from error
    found: list[Item] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{where}:{number}: not JSON: {error}") from error
            item = _item(row, options, f"{where}:{number}", str(number))
            if item.id in seen:
                raise UsageError(f"{where}:{number}: id {item.id!r} is used twice")
            seen.add(item.id)
            found.append(item)
    if not found:
        raise UsageError(f"{where}: no items")
    return found


def _item(row: Any, options: EvaluationSet, where: str, number: str) -> Item:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: must be a JSON object")
    missing = [name for name in FIELDS[options.kind] if name not in row]
    if missing:
        raise UsageError(f"{where}: missing {', '.join(missing)} (a set of kind {options.kind})")
    identifier = str(row.get("id", number))
    unit = str(row.get("document", identifier))
    if options.kind == "text":
        return Item(identifier, unit, "", (str(row["text"]),))
    prefix = options.prompt.replace("{question}", str(row["question"]))
    if options.kind == "answers":
        return Item(identifier, unit, prefix, (" " + str(row["answer"]),))
    texts, right = row["options"], row["answer"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise UsageError(f"{where}: options must be a list of two or more texts")
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(texts):
        raise UsageError(
            f"{where}: answer must be the index of an option (0 to {len(texts) - 1}), not {right!r}"
        )
    return Item(identifier, unit, prefix, tuple(f" {text}" for text in texts), right)
