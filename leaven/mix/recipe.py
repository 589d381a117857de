"""Recipes: how many tokens of which source an arm trains on, to the block.

An arm is a budget of tokens cut into blocks of one context each. Its sources get blocks by

    weight          a share of the budget; the weights of an arm sum to 1 (or 100)
    unique_tokens   a share in proportion to how much each source has, so that all are seen equally often
                    (paper 000, C.1 and table 7: "this ensures that different sources have consistent
                    repetition epochs")
    tokens, epochs  an amount, given directly or as multiples of the source (paper 000, table 8: 50B x 2 and
                    200B x 2); the amounts of an arm must add up to the budget

Replay (paper 003, A.2): at every position a coin is flipped, and with probability `rate` a block of the
replay source stands there instead. The coins depend on the seed only, so all arms of one budget replay at the
same places. Synthetic documents are never repeated unless an arm says so (paper 003, 3.3: joint training).

How much of a mix should be synthetic depends on the model: `synthetic_share` has paper 004's table, and a sweep
over shares (paper 001, 3.6; paper 003, B.1.2: 12.5% at 3B parameters, 25% at 6B) finds it out.

All of this is arithmetic on counts: nothing here reads a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.errors import UsageError, nearest

_CLOSE = 1e-6  # how far weights may be from their sum
# Paper 004 (BeyondWeb): share of synthetic tokens for models of fewer parameters than that.
_SHARES = ((3e9, 0.5), (10e9, 0.3), (100e9, 0.15), (math.inf, 0.05))


class Amount(BaseModel):
    """How much of one source an arm takes; exactly one of the first three.

    Args:
        repeat: whether it may be seen more than once; None allows it for real documents and forbids it for
            written ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    repeat: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_way(self) -> Amount:
        if sum(given is not None for given in (self.weight, self.tokens, self.epochs)) != 1:
            raise ValueError("give exactly one of weight, tokens and epochs")
        return self


class ModelSize(BaseModel):
    """Real and synthetic text by the size of the model, as paper 004 has it.

    Args:
        parameters: of the model to be trained.
        repeat: as of `Amount`, for the synthetic source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    real: str
    synthetic: str
    parameters: float = Field(gt=0)
    repeat: bool | None = None


class Sweep(BaseModel):
    """One arm for every share of synthetic tokens.

    Args:
        repeat: as of `Amount`, for the synthetic source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    real: str
    synthetic: str
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1)
    repeat: bool | None = None


class Replay(BaseModel):
    """Blocks of another source put in place of the arm's own.

    Args:
        rate: probability that a block is replaced; 0.1 in paper 003.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    rate: float = Field(0.1, gt=0, lt=1)


@dataclass(frozen=True)
class Supply:
    """What there is of a source.

    Args:
        tokens: of all its documents, the marks between them included.
        synthetic: written by a model.
    """

    tokens: int
    synthetic: bool


@dataclass(frozen=True)
class Share:
    """What an arm takes of a source; a row of the recipe table.

    Args:
        blocks: of one context each.
        tokens: blocks x context.
        epochs: tokens / unique tokens.
    """

    source: str
    unique_tokens: int
    blocks: int
    tokens: int
    epochs: float


@dataclass(frozen=True)
class Allocation:
    """An arm's recipe, resolved.

    Args:
        which: number of the source (its place in `shares`) of every block in training order, shape (blocks,).
    """

    arm: str
    context: int
    shares: tuple[Share, ...]
    which: NDArray[np.int32]

    @property
    def tokens(self) -> int:
        return len(self.which) * self.context


def synthetic_share(parameters: float) -> float:
    """Share of synthetic tokens for a model of that size (paper 004): smaller models gain more from them.

    Its table begins at a billion parameters; smaller models get the same as those of one to three.
    """
    return next(share for most, share in _SHARES if parameters < most)


def two_sources(real: str, synthetic: str, share: float, repeat: bool | None = None) -> dict[str, Amount]:
    """Amounts of a mix with that share of synthetic tokens; a source with none is left out."""
    amounts = {real: (1 - share, None), synthetic: (share, repeat)}
    return {
        name: Amount(weight=weight, repeat=again) for name, (weight, again) in amounts.items() if weight > 0
    }


def blocks_of(tokens: int, context: int, where: str) -> int:
    """Whole blocks in a budget.

    Raises:
        UsageError: there is none.
    """
    if tokens < context:
        raise UsageError(f"{where}: a budget of {tokens:,} tokens does not fill one context of {context:,}")
    return tokens // context


def allocate(
    arm: str,
    amounts: Mapping[str, Amount],
    supplies: Mapping[str, Supply],
    *,
    tokens: int,
    context: int,
    seed: int,
    replay: Replay | None = None,
) -> Allocation:
    """Resolve one arm's recipe.

    Args:
        amounts: by source; all weights, or all amounts.
        tokens: the budget; what is over after whole blocks is left out, in every arm alike.

    Raises:
        UsageError: an empty arm, an unknown source, amounts that do not add up, or more of a source than
            there is where repeating it is forbidden.
    """
    where = f"arm {arm}"
    if not amounts:
        raise UsageError(f"{where}: no sources")
    names = list(amounts) + ([replay.source] if replay and replay.source not in amounts else [])
    for name in names:
        if name not in supplies:
            raise UsageError(f"{where}: unknown source {name!r}; {nearest(name, supplies)}")
        if supplies[name].tokens == 0:
            raise UsageError(f"{where}: source {name!r} has no tokens")
    total = blocks_of(tokens, context, where)
    which = np.full(total, -1, dtype=np.int32)
    if replay is not None:
        coins = np.random.default_rng([seed, 1]).random(total)
        which[coins < replay.rate] = names.index(replay.source)
    free = int((which < 0).sum())
    counts = _blocks(where, amounts, supplies, free, context)
    own = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    np.random.default_rng([seed, 2]).shuffle(own)
    which[which < 0] = own
    shares = []
    for number, name in enumerate(names):
        blocks = int((which == number).sum())
        there = supplies[name].tokens
        share = Share(name, there, blocks, blocks * context, blocks * context / there)
        _check_repetition(where, share, amounts.get(name), supplies[name])
        shares.append(share)
    return Allocation(arm, context, tuple(shares), which)


def by_unique_tokens(names: list[str], supplies: Mapping[str, Supply], where: str) -> dict[str, Amount]:
    """Weights in proportion to what there is, so that all sources are seen equally often."""
    for name in names:
        if name not in supplies:
            raise UsageError(f"{where}: unknown source {name!r}; {nearest(name, supplies)}")
    total = sum(supplies[name].tokens for name in names)
    if not total:
        raise UsageError(f"{where}: its sources have no tokens")
    return {name: Amount(weight=supplies[name].tokens / total) for name in names if supplies[name].tokens}


def _blocks(
    where: str, amounts: Mapping[str, Amount], supplies: Mapping[str, Supply], total: int, context: int
) -> list[int]:
    weights = [amount.weight for amount in amounts.values() if amount.weight is not None]
    if weights and len(weights) < len(amounts):
        raise UsageError(f"{where}: give all its sources a weight, or all an amount (tokens or epochs)")
    if weights:
        sum_ = math.fsum(weights)
        whole = 100.0 if abs(sum_ - 100) < 100 * _CLOSE else 1.0
        if abs(sum_ - whole) > whole * _CLOSE:
            raise UsageError(f"{where}: weights sum to {sum_:g}, not to 1 (or 100)")
        return largest_remainder([weight / whole for weight in weights], total)
    wanted = {
        name: amount.tokens
        if amount.tokens is not None
        else round((amount.epochs or 0) * supplies[name].tokens)
        for name, amount in amounts.items()
    }
    asked = sum(wanted.values())
    # Amounts are rounded to whole blocks: they may miss the budget by less than a block each.
    if abs(asked - total * context) >= context * (len(wanted) + 1):
        parts = " + ".join(f"{name} {tokens:,}" for name, tokens in wanted.items())
        raise UsageError(
            f"{where}: its amounts add up to {asked:,} tokens ({parts}), but there is room for "
            f"{total * context:,} beside what is replayed"
        )
    return largest_remainder([tokens / asked for tokens in wanted.values()], total)


def largest_remainder(shares: list[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` (which sum to 1) that add up to `total` exactly."""
    exact = [share * total for share in shares]
    counts = [math.floor(one) for one in exact]
    order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _check_repetition(where: str, share: Share, amount: Amount | None, supply: Supply) -> None:
    allowed = None if amount is None else amount.repeat
    if allowed is None:
        allowed = not supply.synthetic
    if share.tokens > supply.tokens and not allowed:
        raise UsageError(
            f"{where}: takes {share.tokens:,} tokens of {share.source!r}, which has {supply.tokens:,} "
            f"({share.epochs:.2f} epochs), and repeating it is forbidden; take less, write more, or say "
            "'repeat: true'"
        )
