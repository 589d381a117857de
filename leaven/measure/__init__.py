"""The measure stage: how good and how varied a corpus is, with an interval around every figure.

    samples of the corpus, its sources, another corpus --measure, measure, ...--> figures.json, figures.md

A measure is a module with a frozen `Config` and ``async def measure(columns, config, context)``:

    lexical.py      wording: n-gram diversity, self-repetition, compression, TF-IDF, overlap with the source,
                    ...
    embedding.py    meaning: heterogeneity, similarity to the source, Vendi score, k-means, a map
    perplexity.py   perplexity under one model, and the gap between two
    clusters.py     the LLM cluster-agent
    judges.py       what a language model says: consistency, pairwise quality, relevance, factuality, ...
    agreement.py    what such a judge is worth: Cohen's kappa with people's labels
    statistics.py   bootstrap, jackknife, paired differences, kappa

To add one: the module, and its name in `MEASURES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from leaven.config import one_item, validated
from leaven.errors import UsageError, nearest
from leaven.lm import ModelConfig

MEASURES = ("lexical", "embedding", "perplexity", "clusters", "judges")


@dataclass(frozen=True)
class Measure:
    """One measure with its options."""

    name: str
    module: ModuleType
    config: BaseModel

    @property
    def models(self) -> tuple[ModelConfig | None, ...]:
        """The language models it asks, None for the one named for measuring; most measures ask none.

        A measure that does has a function ``models(config)``.
        """
        asked = getattr(self.module, "models", None)
        return asked(self.config) if asked else ()


def parse_measures(
    items: Sequence[Any], base: Path | None = None, where: str = "measure"
) -> tuple[Measure, ...]:
    """The measures of a plan's list, in order.

    Args:
        items: each a name or ``{name: {option: value}}``.
        base: folder that relative paths in options start from; None leaves them as they are.
        where: the file and the place in it, for errors.

    Raises:
        UsageError: an unknown measure or option (nearest name suggested), a bad value, or one named twice.
    """
    found: dict[str, Measure] = {}
    for item in items:
        name, options = one_item(item, where)
        if name not in MEASURES:
            raise UsageError(f"{where}: unknown measure {name!r}; {nearest(name, MEASURES)}")
        if name in found:
            raise UsageError(f"{where}: {name} is listed twice; put all its options in one item")
        module = import_module(f"{__name__}.{name}")
        found[name] = Measure(name, module, validated(module.Config, options, f"{where}: {name}", base))
    return tuple(found.values())
