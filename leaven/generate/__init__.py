"""Writing new documents from old ones: one file per published method.

A method is a module here with
    a header            paper, section, where the defaults come from, deviations
    STEPS               its kinds of requests: prompt, sampling, what a typical answer looks like
    Config              its options, a frozen pydantic model
    expand              async def expand(document, ask, config) -> AsyncIterator[Document]
    bootstrap, work     where it trains the model it writes with: see `_training.py` (there may be TRAINS_ONLY, too)
No base class and no registration: a method is found by its file name. Files beginning with an underscore
are the machinery around them: `_runner.py` runs one over a corpus, `_training.py` is for those that train their own
writer, `_rehearse.py` tells beforehand what that will cost.
"""

from __future__ import annotations

import pkgutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from leaven.document import Document
from leaven.errors import UsageError, nearest
from leaven.lm.ask import Ask, Step

Expand = Callable[[Document, Ask, Any], AsyncIterator[Document]]


@dataclass(frozen=True)
class Method:
    """A method's module, with its parts by name.

    Args:
        bootstrap, work: where it trains the model it writes with; see `_training.py`.
        trains_only: it cannot write with any other.
    """

    name: str
    title: str
    header: str
    steps: dict[str, Step]
    Config: type[BaseModel]
    expand: Expand
    source: Path
    bootstrap: Callable[..., dict[str, Any]] | None = None
    work: Callable[..., Any] | None = None
    trains_only: bool = False


def method_names() -> list[str]:
    """All methods, by file name, without importing them."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load_method(name: str) -> Method:
    """The method in ``leaven/generate/<name>.py``.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in method_names():
        raise UsageError(f"unknown method {name!r}; {nearest(name, method_names())}")
    module = import_module(f"{__name__}.{name}")
    header = module.__doc__ or ""
    source = Path(str(module.__file__))
    return Method(
        name, header.splitlines()[0], header, module.STEPS, module.Config, module.expand, source,
        getattr(module, "bootstrap", None), getattr(module, "work", None), getattr(module, "TRAINS_ONLY", False),
    )  # fmt: skip


def bootstrapping() -> list[str]:
    """The methods that need no model but the one they train."""
    return [name for name in method_names() if load_method(name).bootstrap is not None]
