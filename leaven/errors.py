"""The two ways work can fail, named once for the whole package.

A `UsageError` is the user's to mend: one line saying what is wrong, where, and how to mend it;
the command line prints that line and exits with 2. A `Rejected` concerns one piece of work only:
it is caught where that piece of work was started and becomes a row in `rejected/` with its reason.
Anything else is a bug and is shown with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """Something the user can mend; the message is one complete line."""


class Stopped(Exception):
    """The run cannot go on for now (server gone, budget spent, disk full); what was received is kept."""


class Rejected(Exception):
    """One answer or document is not fit to keep.

    Args:
        reason: a short, stable word or two to count by, for example ``"truncated"``.
        detail: one line for a person: what exactly was wrong.
        raw: the text as it was received, kept in the reject row.
        request: key of the answer in the response store, if one was received.
    """

    def __init__(self, reason: str, detail: str = "", raw: str = "", request: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.raw, self.request = reason, detail, raw, request


def nearest(name: str, known: Iterable[str]) -> str:
    """Ending for an error line: the nearest known name, or the list of all."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
