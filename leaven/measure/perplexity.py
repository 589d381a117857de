"""Perplexity of the texts under a language model, and the gap between two.

    perplexity       exp of the mean negative log-probability per token (paper 001, table 1; GPT-2-L there)
    bits_per_byte    the same per byte of text, comparable between models of different tokenizers
    perplexity_gap   perplexity of `model` minus that of `against`, the larger one (paper 001: GPT-2-L -
                     GPT-2-XL)

Paper 001 prints a mean over texts without dividing by their lengths; here every token counts once, as
perplexity is computed everywhere else. Any backend that scores serves: a checkpoint (`transformers`), or a
server with `api: completions` that echoes log-probabilities. Scores are kept in the response store like
answers.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leaven.errors import Rejected, UsageError
from leaven.lm import ModelConfig
from leaven.lm.client import LanguageModel
from leaven.measure.base import Columns, Context, Figure, Options, Sample, together
from leaven.measure.statistics import bootstrap

LEAST_FAILURES = 10  # texts that could not be scored, and no other that could, before it is given up


class Config(Options):
    """Options of perplexity.

    Args:
        model: the model that scores; None is the measure's (or the plan's) model.
        against: a second, larger model for the gap.
        sample: most documents of a column to score.
    """

    model: ModelConfig | None = None
    against: ModelConfig | None = None
    sample: int = Field(500, ge=1)


def models(config: Config) -> tuple[ModelConfig | None, ...]:
    """The models it asks."""
    return (config.model,) + ((config.against,) if config.against else ())


async def measure(columns: Columns, config: Config, context: Context) -> list[Figure]:
    """Perplexity of every column."""
    opened = [context.open(one) for one in models(config)]
    found: list[Figure] = []
    for sample in columns.values():
        chosen = sample.first(config.sample)
        scored = [await _score(chosen, model, context) for model in opened]
        kept = [i for i in range(len(chosen)) if all(np.isfinite(one[i, 0]) for one in scored)]
        found += _figures(
            chosen.chosen(kept), [one[kept] for one in scored], len(chosen), opened, context.seed
        )
    return found


def _figures(
    sample: Sample, scored: list[NDArray[np.float64]], asked: int, models: list[LanguageModel], seed: int
) -> list[Figure]:
    units = sample.units
    note = f"by {models[0].name}" + (f"; {asked - len(sample)} could not be scored" * (asked > len(sample)))
    make = partial(Figure, column=sample.name, n=len(sample), unit=sample.unit)
    loss, tokens = scored[0].T
    value, interval = bootstrap([loss, tokens], lambda a, b: np.exp(a / b), units, seed=seed)
    figures = [make("perplexity", value=value, interval=interval, note=note)]
    size = np.array([len(text.encode("utf-8", "surrogatepass")) for text in sample.texts], dtype=float)
    value, interval = bootstrap([loss, size], lambda a, b: a / b / np.log(2), units, seed=seed)
    figures.append(make("bits_per_byte", value=value, interval=interval, note=note))
    if len(scored) > 1:
        parts = [loss, tokens, *scored[1].T]
        value, interval = bootstrap(parts, lambda a, b, c, d: np.exp(a / b) - np.exp(c / d), units, seed=seed)
        note = f"{models[0].name} minus {models[1].name}"
        figures.append(make("perplexity_gap", value=value, interval=interval, note=note))
    return figures


async def _score(sample: Sample, model: LanguageModel, context: Context) -> NDArray[np.float64]:
    """(negative log-probability, scored tokens) of every text, shape (texts, 2); nan where it failed."""
    found = np.full((len(sample), 2), np.nan)
    failures: list[Rejected] = []

    async def one(row: int) -> None:
        try:
            scores = await model.score(sample.texts[row])
        except Rejected as error:
            failures.append(error)
            if len(failures) == min(LEAST_FAILURES, len(sample)) and np.isnan(found).all():
                message = f"perplexity: {model.name} cannot score texts: {error.detail}"
                raise UsageError(message) from error
            return
        if scores:
            found[row] = -sum(scores), len(scores)

    progress = partial(context.progress, f"perplexity of {sample.name} by {model.name}")
    await together([one(row) for row in range(len(sample))], progress)
    return found
