"""The mix stage: what each arm of an experiment trains on, to the token and in order.

    sources (stages, files) + recipes --tokens under one budget--> MIX/ARM/tokens.bin, and a table that adds
    up

    recipe.py   amounts, weights, epochs, replay: arithmetic on counts
    pack.py     documents as token streams; blocks in training order on disk

All arms of a mix have the same budget, the same context and the same tokenizer: they differ in nothing but
their text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.config import PlanLocation, PlanName
from leaven.document import Document, field_of
from leaven.errors import UsageError
from leaven.mix.recipe import (
    Allocation,
    Amount,
    ModelSize,
    Replay,
    Share,
    Supply,
    Sweep,
    allocate,
    by_unique_tokens,
    synthetic_share,
    two_sources,
)
from leaven.stage import Stage

if TYPE_CHECKING:
    from leaven.corpus.tokens import Tokenizer
    from leaven.mix.pack import Order, Stream

__all__ = ["Arm", "Mix", "Source", "allocations", "mix", "shares_of"]


class Source(BaseModel):
    """Documents an arm may take; exactly one of `stage` and `path`.

    Args:
        stage: ``corpus`` (the real documents), ``held_out`` (real documents set aside), ``generate`` (all that was
            written), ``clean`` (what was kept).
        path: a run, a stage's folder, or documents in any form that Leaven reads.
        only: lineage fields and the value, or one of the values, that they must have, e.g.
            ``{method: mga, variables.strictness: [base, strict]}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str | None = Field(None, pattern="^(corpus|held_out|generate|clean)$")
    path: PlanLocation | None = None
    only: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)

    def takes(self, document: Document) -> bool:
        """Whether `only` lets the document through."""
        return all(
            field_of(document, name) in ((value,) if isinstance(value, str) else value)
            for name, value in self.only.items()
        )

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.stage is None) == (self.path is None):
            raise ValueError("give either stage or path")
        return self


class Arm(BaseModel):
    """What one arm trains on; exactly one of the three.

    Args:
        sources: amount by source; a number is a weight.
        unique_tokens: sources weighted by how much they have.
        model_size: a real and a synthetic source, weighted by the size of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sources: dict[str, Amount] = Field(default_factory=dict)
    unique_tokens: tuple[str, ...] = ()
    model_size: ModelSize | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Arm:
        if sum(map(bool, (self.sources, self.unique_tokens, self.model_size))) != 1:
            raise ValueError("give exactly one of sources, unique_tokens and model_size")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The sources it takes from."""
        size = self.model_size
        return (*self.sources, *self.unique_tokens, *((size.real, size.synthetic) if size else ()))

    def amounts(self, supplies: Mapping[str, Supply], where: str) -> dict[str, Amount]:
        """How much of every source."""
        if self.model_size is not None:
            size = self.model_size
            return two_sources(size.real, size.synthetic, synthetic_share(size.parameters), size.repeat)
        return dict(self.sources) or by_unique_tokens(list(self.unique_tokens), supplies, where)


class Mix(BaseModel):
    """Options of the mix stage.

    Args:
        tokens: the budget of every arm.
        context: tokens of one training sequence.
        sources: by name.
        arms: by name.
        sweeps: by name; each makes arms NAME-SHARE.
        replay: blocks of another source in place of an arm's own, at the same places in every arm.
        order: ``documents`` shuffles all; ``megadocuments`` keeps what was written from one source together.
        validation: a source that no arm takes; what training is validated on. It is packed whole, in the order of
            the documents' ids.
        mask: a token sees only what stands before it in its own document, not the documents packed before it.
        end, begin: spelling of the marks around a document; None finds the tokenizer's end mark, and puts
            nothing before a document.
        tokenizer: tokenizer.json, checkpoint folder or hub name; None is the corpus's own.
        seed: of everything that is shuffled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tokens: int = Field(ge=1)
    context: int = Field(2048, ge=8)
    sources: dict[str, Source] = Field(min_length=1)
    arms: dict[str, Arm] = Field(default_factory=dict)
    sweeps: dict[str, Sweep] = Field(default_factory=dict)
    replay: Replay | None = None
    validation: str | None = None
    order: str = Field("documents", pattern="^(documents|megadocuments)$")
    mask: bool = False
    end: str | None = None
    begin: str | None = None
    tokenizer: PlanName | None = None
    seed: int = 0

    @cached_property
    def every_arm(self) -> dict[str, Arm]:
        """The arms, and those of the sweeps."""
        swept = {
            f"{name}-{share:g}": Arm(sources=two_sources(one.real, one.synthetic, share, one.repeat))
            for name, one in self.sweeps.items()
            for share in one.shares
        }
        return self.arms | swept

    @model_validator(mode="after")
    def _some_arms(self) -> Mix:
        shares = sum(len(set(one.shares)) for one in self.sweeps.values())
        if not self.every_arm:
            raise ValueError("give at least one arm or sweep")
        if len(self.every_arm) != len(self.arms) + shares:
            raise ValueError("a sweep and an arm make two arms of one name; rename one")
        replayed = (self.replay.source,) if self.replay else ()
        for name, arm in self.every_arm.items():
            if self.validation in (*arm.names, *replayed):
                raise ValueError(
                    f"arm {name} would train on {self.validation!r}, which is held out as validation"
                )
        if "validation" in self.every_arm:
            raise ValueError("no arm may be named 'validation'")
        return self


def allocations(options: Mix, streams: Mapping[str, Stream]) -> dict[str, Allocation]:
    """Every arm's recipe, resolved.

    Raises:
        UsageError: an arm that cannot be; see `recipe.allocate`.
    """
    supplies = {name: stream.supply for name, stream in streams.items()}
    found: dict[str, Allocation] = {}
    for name, arm in options.every_arm.items():
        amounts = arm.amounts(supplies, f"arm {name}")
        found[name] = allocate(
            name, amounts, supplies, tokens=options.tokens, context=options.context, seed=options.seed,
            replay=options.replay,
        )  # fmt: skip
    sizes = {name: one.tokens for name, one in found.items()}
    assert len(set(sizes.values())) == 1, f"arms differ in tokens: {sizes}"
    return found


def mix(
    options: Mix,
    sources: Mapping[str, tuple[str, Callable[[], Sequence[Document]]]],
    tokenizer: Tokenizer,
    out: Path,
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None,
    dry: bool = False,
) -> tuple[dict[str, Any] | None, dict[str, Allocation]]:
    """Resolve the recipes and write every arm's tokens.

    Args:
        sources: by name, (fingerprint, function that gives its documents).
        out: the stage's folder.
        dry: only resolve; nothing is written.

    Returns:
        (manifest or None where dry, allocation by arm; none of it where it was done before).

    Raises:
        UsageError: a recipe that cannot be, before anything is written.
    """
    from leaven.mix.pack import encode, marks_of, write_arm, write_tokens

    stage = Stage(
        out, options.model_dump(mode="json") | {"tokenizer": tokenizer.fingerprint},
        {name: fingerprint for name, (fingerprint, _) in sources.items()},
    )  # fmt: skip
    manifest = stage.manifest
    if manifest is not None and not dry:
        return manifest, {}
    marks = marks_of(tokenizer, options.end, options.begin)
    streams: dict[str, Stream] = {}
    for name, (_, read) in sources.items():
        documents = read()
        if not documents:
            raise UsageError(f"mix: source {name!r} has no documents")

        def encoded(done: int, name: str = name, total: int = len(documents)) -> None:
            progress(f"tokens of {name}", done, total)

        streams[name] = encode(documents, tokenizer, marks, encoded)
    found = allocations(options, streams)
    if dry:
        return None, found
    held = None if options.validation is None else streams[options.validation].whole_blocks(options.context)
    if held is not None and not len(held):
        raise UsageError(
            f"mix: validation {options.validation!r} does not fill one context of {options.context:,}"
        )
    stage.prepare(rows=False)
    if held is not None:
        write_tokens(out / "validation" / "tokens.bin", held)
    order: Order = "megadocuments" if options.order == "megadocuments" else "documents"
    for number, (name, one) in enumerate(found.items()):
        progress("arms", number, len(found))
        chosen = [streams[share.source] for share in one.shares]
        write_arm(out / name / "tokens.bin", one, chosen, order, options.seed)
    tokenizer.save(out / "tokenizer.json")
    kind = str(next(iter(streams.values())).tokens.dtype)
    arms = {
        name: {"tokens": one.tokens, "sources": [asdict(share) for share in one.shares]}
        for name, one in found.items()
    }
    manifest = stage.finish(
        counts={"tokens": next(iter(found.values())).tokens, "arms": len(found)}, reasons={}, arms=arms,
        context=options.context, dtype=kind, vocab_size=tokenizer.vocab_size, end=marks.end, mask=options.mask,
        validation=None if held is None else held.size,
    )  # fmt: skip
    return manifest, found


def shares_of(manifest: Mapping[str, Any]) -> dict[str, list[Share]]:
    """The recipe table of a finished mix: what every arm takes of every source."""
    return {name: [Share(**one) for one in arm["sources"]] for name, arm in manifest["arms"].items()}
