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
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from leaven.document import Document
from leaven.errors import UsageError, nearest
from leaven.lm.ask import Ask, Step

if TYPE_CHECKING:
    from leaven.generate._training import Work

Expand = Callable[[Document, Ask, Any], AsyncIterator[Document]]


@dataclass(frozen=True)
class Training:
    """What a method has that trains the model it writes with; see `_training.py`.

    Args:
        only: it cannot write with any other model.
    """

    bootstrap: Callable[..., dict[str, Any]]
    work: Callable[..., Work]
    only: bool


@dataclass(frozen=True)
class Method:
    """A method's module, with its parts by name; `training` where it trains the model it writes with."""

    name: str
    title: str
    header: str
    steps: dict[str, Step]
    Config: type[BaseModel]
    expand: Expand
    source: Path
    training: Training | None = None


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
    training = None
    if hasattr(module, "bootstrap"):
        training = Training(module.bootstrap, module.work, getattr(module, "TRAINS_ONLY", False))
    title = header.splitlines()[0]
    return Method(name, title, header, module.STEPS, module.Config, module.expand, source, training)


def bootstrapping() -> list[str]:
    """The methods that need no model but the one they train."""
    return [name for name in method_names() if load_method(name).training is not None]
