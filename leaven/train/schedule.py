"""Learning-rate schedules as functions of the step: what share of the peak applies.

wsd        warm-up, stable, decay: 0.1% / 75% / 25% of the steps (paper 000, C.2)
cosine     warm-up, then a half cosine down to the floor (paper 003, A.2: 5% warm-up)
linear     warm-up, then a straight line down to the floor (paper 001, A.1)
constant   warm-up, then no change (paper 003, B.1.1: synthesizer-tuning)
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Literal["wsd", "cosine", "linear", "constant"]
WARM_UP = {"wsd": 0.001, "cosine": 0.05, "linear": 0.05, "constant": 0.0}


class Schedule(BaseModel):
    """A schedule.

    Args:
        warm_up: share of the steps in which the rate rises from 0; None is the default of `name`.
        decay: share of the steps at the end of ``wsd`` in which it falls.
        floor: share of the peak at the last step of ``wsd``, ``cosine`` and ``linear``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name = "wsd"
    warm_up: float | None = Field(None, ge=0, le=1)
    decay: float = Field(0.25, ge=0, le=1)
    floor: float = Field(0.0, ge=0, le=1)

    def at(self, step: int, steps: int) -> float:
        """Share of the peak rate at `step` (from 0) of `steps`."""
        warm = math.ceil(steps * (WARM_UP[self.name] if self.warm_up is None else self.warm_up))
        if step < warm:
            return (step + 1) / warm
        if self.name == "constant":
            return 1.0
        start = max(warm, steps - round(steps * self.decay)) if self.name == "wsd" else warm
        if step < start:
            return 1.0
        # 1 at the first step of the decay, the floor at the last step.
        left = 1 - (step - start + 1) / max(1, steps - start)
        shape = 0.5 * (1 - math.cos(math.pi * left)) if self.name == "cosine" else left
        return self.floor + (1 - self.floor) * shape
