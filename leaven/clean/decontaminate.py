"""The filter against evaluation questions in the training data.

A text is rejected if it shares any run of `n` lower-case words with any string of the evaluation files. Paper
003 (s1, appendix B.4) drops a training question on any shared 8-gram; GPT-3 (Brown et al. 2020, appendix C)
used 13-grams. Punctuation is not looked at, so that a changed comma hides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from leaven.clean.base import Filter, Options, Place, Sources, Verdict
from leaven.config import PlanPath
from leaven.corpus.shingles import Hashes, ngrams, occurs, word_hashes, words
from leaven.document import Document
from leaven.errors import UsageError, nearest


class Decontaminate(Filter):
    """Rejects texts that share a word n-gram with an evaluation file."""

    name = "decontaminate"

    class Config(Options):
        """Options of `decontaminate`.

        Args:
            files: evaluation files: ``.jsonl`` (one object a line) or anything else as plain text, where each
                paragraph line is one string.
            fields: top-level fields of the JSONL objects to protect, with all strings inside them; None
                protects every string.
            n: words in a row; 8 as in s1, or for instance 13 as in GPT-3. Strings with fewer words cannot
                match; the manifest says how many there were.
        """

        files: tuple[PlanPath, ...] = Field(min_length=1)
        fields: tuple[str, ...] | None = None
        n: int = Field(8, ge=3)

    config: Config

    def files(self) -> Sequence[Path]:
        return self.config.files

    def open(self, sources: Sources | None = None) -> None:
        """Read the evaluation files.

        Raises:
            UsageError: a file that cannot be read, a broken line, or a field that no object has; no string
                is long enough to match.
        """
        parts: list[Hashes] = [np.zeros(0, dtype=np.uint64)]
        self._strings = self._short = 0
        for path in self.config.files:
            for string in protected(path, self.config.fields):
                runs = ngrams(word_hashes(string), self.config.n)
                self._strings += 1
                self._short += not len(runs)
                parts.append(runs)
        self._known = np.unique(np.concatenate(parts))
        if not len(self._known):
            names = ", ".join(map(str, self.config.files))
            raise UsageError(
                f"decontaminate: no string in {names} has {self.config.n} words, so nothing could match; "
                "lower n or choose other fields"
            )

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        hits = occurs(ngrams(word_hashes(document.text), self.config.n), self._known)
        if not hits.any():
            return Verdict(True, None)
        first = int(hits.argmax())
        shared = " ".join(words(document.text)[first : first + self.config.n])
        facts = {"matches": int(hits.sum())}
        return Verdict(False, shared, f"shares {shared!r} with an evaluation file", facts=facts)

    def report(self) -> dict[str, Any]:
        return {"strings": self._strings, "too_short_to_match": self._short, "ngrams": len(self._known)}


def protected(path: Path, fields: Sequence[str] | None) -> Iterator[str]:
    """All strings of an evaluation file that hold a word, in order.

    Raises:
        UsageError: the file cannot be read, a line is not a JSON object, or a field is in none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"decontaminate: evaluation file {path}: {reason}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        yield from (line for _, line in lines)
        return
    seen: set[str] = set()
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"decontaminate: {path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"decontaminate: {path}, line {number}: must be a JSON object")
        seen.update(row)
        yield from _strings(row if fields is None else {name: row.get(name) for name in fields})
    for name in fields or ():
        if name not in seen:
            raise UsageError(f"decontaminate: {path} has no field {name!r}; {nearest(name, seen)}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if words(value):
            yield value
    elif isinstance(value, dict):
        for inside in value.values():
            yield from _strings(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _strings(inside)
