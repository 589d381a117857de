"""The clean stage: throw out what should not be trained on, and say of every row why.

    written documents --filter, filter, ...--> data/ (kept) and rejected/ (with the reason)

A filter is a class with a frozen `Config`, known by the name under which a plan lists it:

    rules.py          boilerplate, length, length_ratio, repetition     the text alone
    tics.py           tics                                              phrases a model overuses
    source.py         copying, coverage                                 the text beside its sources
    duplicates.py     near_duplicates                                   the text beside all others
    decontaminate.py  decontaminate                                     the text beside evaluation files
    borrowed.py       gopher_quality, gopher_repetition, c4_quality     datatrove's own

What a filter measured and decided is kept on every row under ``metadata["checks"][NAME]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaven.config import one_item, validated
from leaven.errors import UsageError, nearest

if TYPE_CHECKING:
    from leaven.clean.base import Filter

__all__ = ["FILTERS", "Filter", "clean", "load_filter", "parse_filters"]

# Where each filter lives; imported when first asked for.
FILTERS: Mapping[str, str] = {
    "boilerplate": "rules:Boilerplate",
    "length": "rules:Length",
    "length_ratio": "rules:LengthRatio",
    "repetition": "rules:Repetition",
    "tics": "tics:Tics",
    "copying": "source:Copying",
    "coverage": "source:Coverage",
    "near_duplicates": "duplicates:NearDuplicates",
    "decontaminate": "decontaminate:Decontaminate",
    "gopher_quality": "borrowed:GopherQuality",
    "gopher_repetition": "borrowed:GopherRepetition",
    "c4_quality": "borrowed:C4Quality",
}


def load_filter(name: str, where: str = "clean") -> type[Filter]:
    """The filter class of that name.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in FILTERS:
        raise UsageError(f"{where}: unknown filter {name!r}; {nearest(name, FILTERS)}")
    module, _, attribute = FILTERS[name].partition(":")
    found: type[Filter] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found


def parse_filters(items: Sequence[Any], base: Path | None = None, where: str = "clean") -> list[Filter]:
    """The filters of a plan's list, in order.

    Args:
        items: each a name or ``{name: {option: value}}``.
        base: folder that relative paths in options start from; None leaves them as they are.
        where: the file and the place in it, for errors.

    Raises:
        UsageError: an unknown filter or option (nearest name suggested), a bad value, or a filter named
            twice.
    """
    filters: dict[str, Filter] = {}
    for item in items:
        name, options = one_item(item, where)
        kind = load_filter(name, where)
        if name in filters:
            raise UsageError(f"{where}: {name} is listed twice; put all its options in one item")
        filters[name] = kind(validated(kind.Config, options, f"{where}: {name}", base))
    return list(filters.values())


def clean(
    inputs: Sequence[Path],
    sources: Path,
    out: Path,
    filters: Sequence[Filter],
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Filter written documents into a stage's folder; skipped when it was done with the same filters.

    Filters are applied in order; the first to reject a row ends its checks. Every input shard gives one
    output shard. Text is streamed: memory holds a shard's rows, some shards of the corpus, and what a filter
    over the whole output keeps of each row (a signature, an id).

    Args:
        inputs: finished stage folders of written documents, in the order that decides which of two
            near-duplicates is kept.
        sources: the corpus stage they were written from; ``metadata["sources"]`` are ids in it.
        out: the stage's folder.
        filters: from `parse_filters`.
        count_tokens: token counts of texts, for rows whose text a filter edited; None removes the count of
            such rows.
        progress: called with (checks of rows done, of how many).

    Returns:
        the manifest. `counts`: ``read`` = ``kept`` + ``rejected``, and ``edited``; `reasons`: rejected rows
        by filter; `filters`: what each found over the whole output.

    Raises:
        UsageError: a folder is not a finished stage, is given twice, or a row's source is not in `sources`.
    """
    from leaven.clean._runner import run

    return run(inputs, sources, out, filters, count_tokens, progress)


def __getattr__(name: str) -> Any:
    """`Filter`, the base class, imported when asked for."""
    if name == "Filter":
        from leaven.clean.base import Filter

        return Filter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
