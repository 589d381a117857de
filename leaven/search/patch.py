"""A model's answer becomes changed files, or a log that says why not (paper 003, 4.2.2).

An answer is prose with a unified diff in it, or with files as a whole, or both for different files. Thoughts
(``<think>``) are dropped. A file as a whole is asked for in this form, which also deletes:

    === FILE path/to/file.py              === DELETE path/to/other.py
    every line of the file
    === END

Understood as well: a heading without the word FILE, a fence under it (then END is not needed), and a fence with the
path in its info string or alone on the line above it.

Where a hunk ends is told by its counts if what follows cannot belong to it, else by which reading fits the file
(`leaven.search._hunks` finds its place); so a removed ``-- comment``, which looks like a header in a diff, stays
what it is. What can be read in two ways, or would leave out something that looks like a part of the patch, is
refused: a wrong reading would be run and scored as if it were the idea.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from leaven.errors import nearest
from leaven.search._hunks import (
    HUNK,
    Change,
    Kind,
    Line,
    fit,
    hunk_ends,
    hunk_lines,
    is_crlf,
    is_header,
    split_lines,
)

MOST_PROBLEMS = 12  # told in one log

_GIT = re.compile(r"diff --git \"?(?:a/)?(.+?)\"? \"?(?:b/)?\1\"?\s*$")
_EXTENDED = re.compile(
    r"index |(old|new|new file|deleted file) mode |(dis)?similarity index |rename |copy |Binary |GIT "
)
_STAMP = re.compile(r"\t.*|\s+\d{4}-\d\d-\d\d .*")  # what diff(1) writes after a name
_FENCE = re.compile(r"(`{3,}|~{3,})\s*([^`]*)$")
_MARK = re.compile(r"={3,}\s+(?:(FILE|DELETE|END)(?=[:\s]|$):?)?\s*(.*?)\s*=*$", re.IGNORECASE)
_PATH = re.compile(r"[\w./][\w./-]*")
_HEADING = re.compile(
    r"(?:[#>*-]+\s+)*(?:\d+[.)]\s+)?[*`]*(?:(?:new |changed |updated )?file(?:name)?:?[*`]*\s+)?"
    r"[*`\"']*([^\s*`\"':]+)[*`\"':\s]*$",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"\s*<think>.*?(?:</think>\s*|\Z)", re.DOTALL)
_THOUGHTS_END = re.compile(r"\A.*?^</think>[ \t]*\n", re.DOTALL | re.MULTILINE)
_LEFT_OUT = re.compile(
    r"\s*(?:#|//|<!--|/\*)?\s*(?:\.\.\.|…).*\b(?:rest|remain\w*|unchanged|existing|same|before|above)\b", re.I
)
_BULLET = re.compile(r"- \S|-- ?$")  # below a diff: a list, or the end of a mail
_PROSE = (".md", ".rst", ".txt")  # files that may begin with a fence of their own
_NO_NEWLINE = "\\ No newline at end of file\n"


class PatchError(Exception):
    """The answer cannot be applied; the text is a log for its author: which file, which hunk, why."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Which files a patch may touch: patterns (`fnmatch`) of POSIX paths relative to the codebase.

    Args:
        change: may be changed, created or deleted; empty for every file.
        protect: may not be, whatever `change` says.
    """

    change: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()

    def refusal(self, path: str) -> str:
        """Why a patch may not touch the file; empty if it may."""
        if any(fnmatchcase(path, pattern) for pattern in self.protect):
            return "this file is protected, no patch may touch it"
        if self.change and not any(fnmatchcase(path, pattern) for pattern in self.change):
            return f"this file may not be changed, only {', '.join(self.change)}"
        return ""


def apply(answer: str, code: Mapping[str, str], rules: Rules) -> dict[str, str]:
    """The whole codebase after the patch.

    Args:
        answer: of a model, or what `as_diff` wrote.
        code: text by POSIX path.

    Raises:
        PatchError: it does not apply, changes nothing, or touches what it may not; every problem is told.
    """
    reader = _Reader(without_thoughts(answer), code, rules)
    reader.read()
    problems, after = reader.problems, dict(code)
    for path, change in reader.changes.items():
        text, problem = change.result()
        if problem:
            problems.append(f"{path}: {problem}")
        elif text is None:
            del after[path]
        else:
            after[path] = text
    for path in sorted(after.keys() - code.keys()):
        clashes = [parent for parent in map(str, PurePosixPath(path).parents) if parent in after]
        clashes += [path for other in after if other.startswith(f"{path}/")]
        if clashes:
            problems.append(f"{path}: {clashes[0]} would be a file and a folder")
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise PatchError("\n".join(problems[:MOST_PROBLEMS] + [f"and {more} more problems"] * (more > 0)))
    if after == code:
        found = "the result is the same as before" if reader.changes else "it holds no diff and no whole file"
        raise PatchError(f"the answer changes nothing: {found}")
    return after


def as_diff(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The difference as one unified diff, files in order; `apply` and ``git apply`` make `after` of it."""
    written: list[str] = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        written.append(f"diff --git a/{path} b/{path}\n")
        if old is None or new is None:
            written.append(f"{'new' if old is None else 'deleted'} file mode 100644\n")
        names = ("/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{path}")
        for line in difflib.unified_diff(split_lines(old or ""), split_lines(new or ""), *names):
            written.append(line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}")
    return "".join(written)


def without_thoughts(answer: str) -> str:
    """The answer without the reasoning before it, whose opening tag may be in the model's template."""
    match = _THOUGHTS.match(answer)
    if match is None and "<think>" not in answer and answer.count("</think>") == 1:
        match = _THOUGHTS_END.match(answer)
    return answer[match.end() :] if match else answer


class _Reader:
    """Goes through the answer's lines once; `changes` and `problems` are what was found."""

    def __init__(self, answer: str, code: Mapping[str, str], rules: Rules) -> None:
        self.lines = answer.split("\n")
        self.code, self.rules = code, rules
        self.at = 0
        self.fence = ""  # what opened the fence we are in
        self.section: str | None = None  # path that hunks belong to; "" below a header that was refused
        self.changes: dict[str, Change] = {}
        self.problems: list[str] = []

    def read(self) -> None:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.startswith("diff --git ") or is_header(self.lines, self.at):
                self._read_header()
            elif line.startswith("@@"):
                self._read_hunk()
            elif (mark := _mark(line, self.code)) and mark[0] != "END":
                self._read_marked(*mark)
            elif fence := _FENCE.match(line.rstrip()):
                self._read_fence(fence)
            else:
                self.at += 1

    def _open(self, path: str, kind: Kind) -> Change | None:
        """The change of a file that the answer may touch, else None and a problem."""
        why = _unsafe(path)
        if not why:
            path = str(PurePosixPath(path))
            why = self._refusal(path, kind)
        if why:
            self.problems.append(f"{path}: {why}")
            return None
        return self.changes.setdefault(path, Change(kind, self.code.get(path, "")))

    def _refusal(self, path: str, kind: Kind) -> str:
        if why := self.rules.refusal(path):
            return why
        known = self.changes.get(path)
        if known and not known.kind == kind == "patch":
            return "given twice; send every file once"
        if kind in ("patch", "delete") and path not in self.code:
            return f"there is no such file; {nearest(path, self.code)} (a new file has '--- /dev/null' above its name)"
        if kind == "create" and self.code.get(path):
            return "this file exists already; change it with hunks that show its lines, or send it whole"
        return ""

    # Files as a whole

    def _read_marked(self, word: str, path: str) -> None:
        start = self.at = self.at + 1
        if word == "DELETE":
            self._open(path, "delete")
            return
        first = next((i for i in range(start, len(self.lines)) if self.lines[i].strip()), None)
        fence = None if first is None else _FENCE.match(self.lines[first].rstrip())
        if first is not None and fence and not path.endswith(_PROSE):
            self.at = first
            self._read_whole(path, fence)
            return
        while self.at < len(self.lines) and not _mark(self.lines[self.at], self.code):
            self.at += 1
        if self.at < len(self.lines):
            self._write_whole(path, start, self.at)
        else:
            why = "there is no line '=== END' after the file; was the answer cut off?"
            self.problems.append(f"{path}: {why}")

    def _read_fence(self, fence: re.Match[str]) -> None:
        """A fence with a path is a whole file, unless a diff is in it; of others only the diffs count."""
        path = "" if self.fence else _path_in(fence[2], self.code) or self._path_above()
        inside = "\n".join(self.lines[self.at + 1 : self.at + 3])
        is_diff = fence[2].startswith(("diff", "patch")) or inside.startswith(("diff --git ", "--- ", "@@"))
        if path and not is_diff:
            self._read_whole(path, fence)
            return
        if not self.fence:
            self.fence = fence[1]
        elif fence[1].startswith(self.fence) and not fence[2]:
            self.fence = ""
        self.at += 1
        if path and inside.startswith("@@"):
            self.section = str(PurePosixPath(path)) if self._open(path, "patch") else ""

    def _path_above(self) -> str:
        above = [line for line in self.lines[max(0, self.at - 2) : self.at] if line.strip()]
        match = _HEADING.match(above[-1]) if above else None
        return match[1] if match and _is_path(match[1], self.code) else ""

    def _read_whole(self, path: str, fence: re.Match[str]) -> None:
        """A file in a fence, which ends where it is closed; fences with a language inside belong to the file."""
        start, depth = self.at + 1, 0
        for i in range(start, len(self.lines)):
            inner = _FENCE.match(self.lines[i].rstrip())
            if inner and inner[1].startswith(fence[1]):
                if not inner[2] and not depth:
                    self.at = i + 1
                    self._write_whole(path, start, i)
                    return
                depth += 1 if inner[2] else -1
        self.problems.append(f"{path}: the fence around the file is not closed; was the answer cut off?")
        self.at = len(self.lines)

    def _write_whole(self, path: str, start: int, end: int) -> None:
        change = self._open(path, "whole")
        if change is None:
            return
        old, lines = change.old, self.lines[start:end]
        if self.lines[start - 1].endswith("\r"):
            lines = [line.removesuffix("\r") for line in lines]
        known = set(old.split("\n"))
        for line in (line.strip() for line in lines if line not in known and _LEFT_OUT.match(line)):
            self.problems.append(f"{path}: {line!r} stands for lines left out; send all, or a diff")
        text = "".join(line + "\n" for line in lines)
        if is_crlf(old) and "\r" not in text:
            text = text.replace("\n", "\r\n")
        # This form cannot say that the last line has no end; that alone is no change.
        change.whole = old if old and text.removesuffix("\n").removesuffix("\r") == old else text

    # Diffs

    def _read_header(self) -> None:
        """Everything above the hunks of one file; sets `section`."""
        first, self.section = self.lines[self.at], ""
        old = new = extended = ""
        if first.startswith("diff --git "):
            names = _GIT.match(first)
            old, new = (f"a/{names[1]}", f"b/{names[1]}") if names else ("", "")
            self.at += 1
            while self.at < len(self.lines) and _EXTENDED.match(self.lines[self.at]):
                extended += self.lines[self.at] + "\n"
                self.at += 1
        if is_header(self.lines, self.at):
            old, new = _name(self.lines[self.at]), _name(self.lines[self.at + 1])
            self.at += 2
        created = old == "/dev/null" or "new file mode" in extended
        deleted = new == "/dev/null" or "deleted file mode" in extended
        old, new = self._plain(old, "a/", created), self._plain(new, "b/", created)
        path = old if deleted or (old in self.code and new not in self.code) else new
        if re.search("^(Binary|GIT) ", extended, re.MULTILINE):
            why = "only text can be patched"
        elif re.search("^(rename|copy) ", extended, re.MULTILINE) or not (created or deleted or path == new):
            why = "a patch cannot rename or copy; delete the one file and create the other"
        elif not path or (created and deleted):
            why = "this header does not say which file it is about"
        else:
            kind: Kind = "create" if created else "delete" if deleted else "patch"
            self.section = str(PurePosixPath(path)) if self._open(path, kind) else ""
            return
        self.problems.append(f"{path or first.strip()}: {why}")

    def _plain(self, name: str, prefix: str, created: bool) -> str:
        """Without the prefix, if it is one: codebases may have a folder of that name."""
        plain = name.removeprefix(prefix)
        return plain if created or plain in self.code or name not in self.code else name

    def _read_hunk(self) -> None:
        header = self.lines[self.at].strip()
        change = self.changes.get(self.section or "")
        created = change is not None and change.kind == "create"
        lines = hunk_lines(self.lines, self.at, created)
        numbers = HUNK.match(header)
        counted, ends = hunk_ends(self.lines, lines, numbers, created)
        likely = [end for end in ends if self._is_end(lines, end, end == counted)]
        usual = counted if counted in likely else (likely or ends or [0])[-1]
        self.at = lines[usual - 1].end if usual else self.at + 1
        if change is None:
            if self.section is None:
                why = "no file is named above this hunk ('--- a/path', '+++ b/path')"
                self.problems.append(f"{header}: {why}")
            return
        change.hunks += 1
        if not ends:
            why = "it has no lines"
        elif not likely:
            strange = next(line for line in self._rest(lines, usual) if line.strip())
            why = f"{strange!r} below it begins neither with a blank nor with '+' or '-'"
        else:
            end, why = fit(lines, likely, usual, numbers, change)
            self.at = lines[end - 1].end
        if why:
            self.problems.append(f"{self.section}, hunk {change.hunks} ({header[:60]}): {why}")

    def _rest(self, lines: Sequence[Line], end: int) -> list[str]:
        """What stands between the end of a hunk and the next thing that is certainly not a part of it."""
        rest: list[str] = []
        for i in range(lines[end - 1].end, len(self.lines)):
            line = self.lines[i]
            if line.startswith(("@@", "diff --git ")) or is_header(self.lines, i):
                break
            if _FENCE.match(line.rstrip()) or _mark(line, self.code):
                break
            rest.append(line)
        return rest if any(line.strip() for line in rest) else []

    def _is_end(self, lines: Sequence[Line], end: int, counted: bool) -> bool:
        """Whether what follows is not a part of the hunk that would be lost."""
        rest = self._rest(lines, end)
        if not rest:
            return True
        if self.fence:
            return counted and rest[0].rstrip() == "--"
        apart = counted or not rest[0].strip()
        return apart and all(_BULLET.match(line) for line in rest if line.startswith(("+", "-")))


def _name(header: str) -> str:
    return _STAMP.sub("", header[4:]).strip().strip('"`')


def _mark(line: str, code: Mapping[str, str]) -> tuple[str, str] | None:
    """(FILE, DELETE or END, path) of a line that begins or ends a file."""
    match = _MARK.match(line.rstrip())
    if match is None:
        return None
    word, path = (match[1] or "").upper(), match[2].strip("`\"'* ")
    if word == "END":
        return word, ""
    return (word or "FILE", path) if path and (word or _is_path(path, code)) else None


def _path_in(info: str, code: Mapping[str, str]) -> str:
    """The path in a fence's info string: ``python a.py``, ``python:a.py``, ``python title="a.py"``."""
    words = (re.sub(r"^\{?\w+[:=]", "", word).strip("\"'{}") for word in info.split())
    return next((word for word in words if _is_path(word, code)), "")


def _is_path(word: str, code: Mapping[str, str]) -> bool:
    """Whether a word is a file of the code or could be one."""
    suffix = PurePosixPath(word).suffix
    alike = "/" in word or bool(suffix and any(path.endswith(suffix) for path in code))
    return word in code or (alike and bool(_PATH.fullmatch(word)))


def _unsafe(path: str) -> str:
    """Why something is no path inside the codebase."""
    if "\\" in path:
        return "the parts of a path are separated by '/'"
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        return "a path must be relative to the codebase"
    if ".." in path.split("/"):
        return "a path may not lead out of the codebase"
    if path.endswith("/") or str(PurePosixPath(path)) == "." or not path.isprintable():
        return "this is not the name of a file"
    return ""
