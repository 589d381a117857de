"""A model under evaluation: scored where its weights are at hand, asked wherever it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from leaven.lm import ModelConfig, transformers
from leaven.lm.client import LanguageModel
from leaven.measure.base import Context

if TYPE_CHECKING:
    from leaven.evaluate.likelihood import Scorer


@dataclass
class Candidate:
    """One model: an arm's under one seed, or any other to hold beside them.

    Args:
        fingerprint: changes with the model.
        checkpoint: its folder; None for a model at a server.
        served: how to ask a model at a server; None asks the checkpoint in this process.
    """

    arm: str
    seed: int
    fingerprint: str
    checkpoint: Path | None = None
    served: ModelConfig | None = None
    _model: LanguageModel | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @cached_property
    def scorer(self) -> Scorer:
        """For log-probabilities; of a model whose weights are at hand.

        Raises:
            UsageError: no checkpoint there.
        """
        from leaven.evaluate.likelihood import Scorer

        assert self.checkpoint is not None
        return Scorer(self.checkpoint)

    def ask(self, context: Context) -> LanguageModel:
        """For answers; opened when it is first asked."""
        if self._model is None:
            config = self.served
            if config is None:
                assert self.checkpoint is not None
                config = transformers.Config(path=self.checkpoint, name=self.name)
            self._model = context.open(config)
        return self._model

    async def close(self) -> None:
        """Give its memory back: the next model may need all of it."""
        self.__dict__.pop("scorer", None)
        if self._model is not None:
            await self._model.close()
            self._model = None
