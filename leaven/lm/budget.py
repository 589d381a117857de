"""What was spent and how much may be: tokens and money, with hard caps.

Prices come only from the user's own dated file; Leaven ships none and guesses none. Before a request
is sent its worst case (prompt estimate + `max_tokens`) is set aside; if that does not fit under a cap
the request waits for others to finish cheaper than feared, and when none is left the run stops. The
ledger is the response store's own rows, so it survives every resume.
"""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from leaven.config import validated
from leaven.errors import Stopped, UsageError, nearest
from leaven.lm.base import Request, Usage


class Price(BaseModel):
    """Money per million tokens; `cached` is the price of prompt tokens served from a prefix cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)

    def of(self, usage: Usage) -> float:
        """Money for `usage`."""
        cached_price = self.prompt if self.cached is None else self.cached
        fresh = usage.prompt - usage.cached
        return (fresh * self.prompt + usage.cached * cached_price + usage.completion * self.completion) / 1e6


class Prices(BaseModel):
    """The user's price file.

    Args:
        as_of: the day the prices were read off; shown wherever money is.
        models: price by model name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    as_of: datetime.date
    currency: str = "USD"
    models: dict[str, Price]

    def price(self, model: str) -> Price:
        """Raises UsageError if the file has no price for `model`."""
        if model not in self.models:
            raise UsageError(f"the price file has no model {model!r}; {nearest(model, self.models)}")
        return self.models[model]


def load_prices(path: Path) -> Prices:
    """Read a price file (YAML).

    Raises:
        UsageError: missing file, or a field that is wrong, named.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"price file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"price file {path}: not YAML: {' '.join(str(error).split())}") from error
    return validated(Prices, value, f"price file {path}")


class Meter:
    """Counts usage of one model in one run and holds it under the caps.

    Args:
        spent: usage of earlier sessions of this run.
        max_tokens: cap on prompt + completion tokens, or None.
        max_money: cap on money, or None; needs `price`.
    """

    def __init__(
        self,
        spent: Usage = Usage(),  # noqa: B008  (frozen)
        *,
        price: Price | None = None,
        max_tokens: int | None = None,
        max_money: float | None = None,
    ) -> None:
        if max_money is not None and price is None:
            raise UsageError("budget.money needs prices: name your price file under 'prices' in the plan")
        self.spent, self.price = spent, price
        self.max_tokens, self.max_money = max_tokens, max_money
        self._set_aside = Usage()
        self._changed = asyncio.Event()
        self._tokens_per_character = 0.5  # cautious until the first answer says better

    @property
    def capped(self) -> bool:
        """Whether any cap is set."""
        return self.max_tokens is not None or self.max_money is not None

    @property
    def money(self) -> float | None:
        """Money spent so far, or None without prices."""
        return None if self.price is None else self.price.of(self.spent)

    def worst_case(self, request: Request) -> Usage:
        """Most that `request` can use."""
        characters = sum(len(content) for _, content in request.messages)
        return Usage(int(characters * self._tokens_per_character) + 16, 0, request.sampling.max_tokens)

    async def set_aside(self, worst: Usage) -> None:
        """Reserve `worst` before sending.

        Raises:
            Stopped: a cap leaves no room and nothing in flight could make room.
        """
        while not self._fits(worst):
            if self._set_aside.total == 0:
                raise Stopped(self._exhausted(worst))
            self._changed.clear()
            await self._changed.wait()
        self._set_aside = self._set_aside + worst

    def settle(self, worst: Usage | None, used: Usage | None, request: Request) -> None:
        """Count what was really used (None: nothing was), and release what was set aside for it."""
        if used is not None:
            self.spent = self.spent + used
        if worst is None:
            return
        left = self._set_aside
        self._set_aside = Usage(left.prompt - worst.prompt, 0, left.completion - worst.completion)
        self._changed.set()
        characters = sum(len(content) for _, content in request.messages)
        if used is not None and not used.estimated and characters > 200:
            # Follow the server's own tokenizer; a tenth above the last seen stays on the safe side.
            self._tokens_per_character = 1.1 * used.prompt / characters

    def _fits(self, worst: Usage) -> bool:
        total = self.spent + self._set_aside + worst
        if self.max_tokens is not None and total.total > self.max_tokens:
            return False
        return self.max_money is None or self.price is None or self.price.of(total) <= self.max_money

    def _exhausted(self, worst: Usage) -> str:
        if self.max_tokens is not None and (self.spent + worst).total > self.max_tokens:
            return (
                f"token budget reached: {self.spent.total:,} of {self.max_tokens:,} spent and the next "
                f"request may need {worst.total:,}; raise budget.tokens to go on"
            )
        return (
            f"money budget reached: {self.money:.4f} of {self.max_money} spent; raise budget.money to go on"
        )
