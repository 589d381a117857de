"""Which lines a hunk of a diff has, where in its file they belong, and the edits that they make there.

Models count and copy badly, so a hunk is found by its lines, not by its numbers: at the place nearest to the
announced line that has exactly its context and removed lines, else at the nearest that has them up to trailing
white space. Every hunk refers to the file as it was before the patch, so edits are collected and made at once.
`leaven.search.patch` finds the hunks in an answer and judges which of their possible ends are likely.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

Kind = Literal["patch", "create", "delete", "whole"]

MOST_LINES = 12  # of a file shown beside a hunk that does not fit
HUNK = re.compile(r"@@+ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))?")


@dataclass(slots=True)
class Line:
    """A line of a hunk: `op` is ``" "``, ``"-"``, ``"+"``, or ``""`` for an empty one that lost its op.

    Args:
        start, end: lines of the answer that it takes; two with a note that the file's last line has no end.
    """

    op: str
    text: str
    start: int
    end: int
    newline: bool = True


@dataclass(frozen=True, slots=True)
class Edit:
    """Lines `start` to `end` (excluded) of the old file become `new`; its hunk shows those in `shown`."""

    start: int
    end: int
    new: list[str]
    hunk: int
    shown: range

    def conflicts(self, other: Edit) -> bool:
        """Whether one of two hunks changes what the other changes or relies on, or both add at one place."""
        if self.start == self.end == other.start == other.end:
            return True
        # A hunk that shows nothing adds at one place, which must not be among removed lines.
        return any(
            one.start < one.end and one.start < two.shown.stop and two.shown.start < one.end
            for one, two in ((self, other), (other, self))
        )


@dataclass(slots=True)
class Change:
    """What the answer does to one file; `old` is its text, `whole` the new one where it is sent as a whole."""

    kind: Kind
    old: str
    whole: str = ""
    edits: list[Edit] = field(default_factory=list)
    hunks: int = 0

    def result(self) -> tuple[str | None, str]:
        """(text afterwards or None for a deleted file, problem or nothing)."""
        if overlap := self._overlap():
            return None, overlap
        if self.kind == "delete":
            return None, "it is deleted and added to at once" if any(edit.new for edit in self.edits) else ""
        text = self.whole if self.kind == "whole" else self._edited()
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            return None, "the result is not text"
        return text, ""

    def _overlap(self) -> str:
        for i, one in enumerate(self.edits):
            for two in self.edits[:i]:
                if one.hunk != two.hunk and one.conflicts(two):
                    return f"hunks {two.hunk} and {one.hunk} overlap near line {one.start + 1}; make them one"
        return ""

    def _edited(self) -> str:
        lines, pieces, at = split_lines(self.old), list[str](), 0
        for edit in sorted(self.edits, key=lambda edit: (edit.start, edit.end)):
            pieces += lines[at : edit.start] + edit.new
            at = edit.end
        pieces += lines[at:]
        end = "\r\n" if is_crlf(self.old) else "\n"
        inner = [piece if piece.endswith("\n") else piece + end for piece in pieces[:-1]]
        return "".join(inner + pieces[-1:])


def is_header(answer: Sequence[str], at: int) -> bool:
    """Whether two lines of the answer, from `at`, look like ``--- a/path`` and ``+++ b/path``."""
    return [line[:4] for line in answer[at : at + 2]] == ["--- ", "+++ "]


def hunk_lines(answer: Sequence[str], at: int, created: bool) -> list[Line]:
    """All lines that may belong to the hunk headed by line `at`; perhaps also blank ones and headers after it.

    Args:
        created: the file is new, so what is empty is an added line.
    """
    crlf = answer[at].endswith("\r")
    found: list[Line] = []
    for i in range(at + 1, len(answer)):
        line = answer[i].removesuffix("\r") if crlf else answer[i]
        op = line[:1].strip("\r")
        if op == "\\" and found:
            found[-1].newline, found[-1].end = False, i + 1
        elif not op or op in " +-":
            found.append(Line(op or "+" * created, line[len(op) :], i, i + 1))
        else:
            break
    return found


def hunk_ends(
    answer: Sequence[str], lines: Sequence[Line], numbers: re.Match[str] | None, created: bool
) -> tuple[int | None, list[int]]:
    """Where a hunk may end: by its counts, and all places, those counts first, then the longest first.

    Args:
        lines: of `hunk_lines`; an end is how many of them the hunk has.
        numbers: match of `HUNK`.
    """
    counted, old, new = None, 0, 0
    for i, line in enumerate(lines, 1):
        old, new = old + (line.op != "+"), new + (line.op != "-")
        if numbers and (old, new) == (int(numbers[2] or 1), int(numbers[4] or 1)):
            counted = i
    headers = [
        i for i, line in enumerate(lines) if is_header(answer, line.start) and line.end == line.start + 1
    ]
    ends = [counted] if counted else []
    for stop in [len(lines), *reversed(headers)]:
        blanks = 0
        while blanks < stop and not answer[lines[stop - blanks - 1].start].strip("\r"):
            blanks += 1
        # In a file that exists, blank lines at the end are context if that fits; a new file would get them.
        ends += [stop - blanks] if created else [stop - blank for blank in range(blanks + 1)]
    return counted, [end for end in dict.fromkeys(ends) if end]


def fit(
    lines: list[Line], ends: Sequence[int], usual: int, numbers: re.Match[str] | None, change: Change
) -> tuple[int, str]:
    """Add a hunk to the edits of a file, by the first reading that has a place there.

    Args:
        lines: of `hunk_lines`.
        ends: of `hunk_ends`, those that are likely; a problem is told of the `usual` one.
        numbers: match of `HUNK`.

    Returns:
        (its end, problem or nothing).
    """
    problem, file = "", split_lines(change.old)
    for end in ends:
        for reading in _readings(lines[:end]):
            if all(line.op in ("", " ") for line in reading):
                at, why = None, "it changes nothing, none of its lines begins with '+' or '-'"
            else:
                at, why = _place(reading, file, numbers)
            if at is not None:
                change.edits += _edits(reading, at, change)
                return end, ""
            problem = problem if problem and end != usual else why
    return usual, problem


def _readings(lines: list[Line]) -> Iterator[list[Line]]:
    """Empty lines that lost their op are context; between added lines they may be added ones."""
    yield lines
    filled = list(lines)
    for i, line in enumerate(lines):
        after = next((other.op for other in lines[i + 1 :] if other.op), "")
        if not line.op and i and filled[i - 1].op == after == "+":
            filled[i] = replace(line, op="+")
    if filled != lines:
        yield filled


def _place(
    lines: Sequence[Line], file: Sequence[str], numbers: re.Match[str] | None
) -> tuple[int | None, str]:
    """(line of the file, from 0, where the hunk belongs or None; why not)."""
    old = [line for line in lines if line.op != "+"]
    if not file:
        return (None, "the file is new or empty, so all lines must begin with '+'") if old else (0, "")
    if not old:
        start = int(numbers[1]) if numbers and numbers[2] == "0" else 0
        if 0 < start <= len(file):
            return start, ""
        return None, "nothing tells where it belongs; show lines of the file around the added ones"
    expected = int(numbers[1]) - 1 if numbers else None
    bare = [line.removesuffix("\n") for line in file]
    endless = len(file) - 1 if not file[-1].endswith("\n") else -1
    for exact in (True, False):
        wanted = [line.text if exact else line.text.rstrip() for line in old]
        there = bare if exact else [line.rstrip() for line in bare]
        noted = [i for i, line in enumerate(old) if exact and not line.newline]
        found = [
            at
            for at in range(len(file) - len(old) + 1)
            if there[at] == wanted[0]  # spares most of the slices
            and there[at : at + len(old)] == wanted
            and all(at + i == endless for i in noted)
        ]
        if expected is not None and found:
            distance = min(abs(at - expected) for at in found)
            found = [at for at in found if abs(at - expected) == distance]
        if len(found) > 1:
            places = ", ".join(str(at + 1) for at in found[:5])
            return None, f"it fits equally well at lines {places}; show more lines around the change"
        if found:
            return found[0], ""
    return None, _difference([line.text for line in old], bare, expected or 0)


def _difference(wanted: Sequence[str], file: Sequence[str], expected: int) -> str:
    """What the author of a hunk that fits nowhere needs to see."""
    stripped, there = [line.rstrip() for line in wanted], [line.rstrip() for line in file]
    match = difflib.SequenceMatcher(None, stripped, there, autojunk=False).find_longest_match()
    start = max(0, min(match.b - match.a if match.size else expected, len(file) - 1))
    pairs = zip(wanted, stripped, [*there[start:], *[None] * len(wanted)], strict=False)
    wrong = next((line for line, one, other in pairs if one != other), wanted[0])
    end = start + min(len(wanted) + 2, MOST_LINES)
    shown = "\n".join(f"  {i} | {line}" for i, line in enumerate(file[start:end], start + 1))
    return f"its lines are not in the file like this. First that differs: {wrong!r}. Nearest place:\n{shown}"


def _edits(lines: Sequence[Line], at: int, change: Change) -> list[Edit]:
    """The runs of changed lines of a hunk that belongs to line `at`."""
    shown = range(at, at + sum(line.op != "+" for line in lines))
    # A diff that knows nothing of carriage returns means the file's own line ends.
    end = "\r\n" if is_crlf(change.old) and not any("\r" in line.text for line in lines) else "\n"
    edits: list[Edit] = []
    for changed, group in groupby(lines, key=lambda line: line.op in ("+", "-")):
        run = list(group)
        start, at = at, at + sum(line.op != "+" for line in run)
        if changed:
            new = [line.text + (end if line.newline else "") for line in run if line.op == "+"]
            edits.append(Edit(start, at, new, change.hunks, shown))
    return edits


def split_lines(text: str) -> list[str]:
    """Lines with their ends; unlike `str.splitlines` only at line feeds, as diff(1) does."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def is_crlf(text: str) -> bool:
    """Whether the text has line ends and all of them are of DOS."""
    return text.count("\n") == text.count("\r\n") > 0
