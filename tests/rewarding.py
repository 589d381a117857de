"""What tests of rewards share: an environment whose parameters have few values, and workers that compute."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from searching import line_env

from leaven.search.attempt import Outcome
from leaven.search.environment import Code, Environment, read_parameter

RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9]
STEPS = [1, 2, 5, 10, 20, 50, 100, 200]


def few_values(folder: Path, **fields: Any) -> Environment:
    """The template, of whose two parameters there are 8 values each."""
    parameters = {
        "LEARNING_RATE": {"file": "train.py", "choices": RATES},
        "STEPS": {"file": "train.py", "choices": STEPS},
    }
    return line_env(folder, **{"parameters": parameters, **fields})


class Computed:
    """Workers that compute instead of running, and count; two steps are bad luck.

    Args:
        fault: raised in place of the value of the run with this number, from 1; once.
    """

    count = 4

    def __init__(self, fault: Exception | None = None, at: int = 0) -> None:
        self.runs: Counter[tuple[float, int]] = Counter()
        self._fault, self._at = fault, at

    async def value(self, environment: Environment, code: Code, seed: int) -> Outcome:
        rate, steps = (read_parameter(code, name, one) for name, one in environment.file.parameters.items())
        if self._fault is not None and self.runs.total() + 1 >= self._at:
            fault, self._fault = self._fault, None
            raise fault
        self.runs[rate, steps] += 1
        await asyncio.sleep(0)
        if steps == 2:
            return Outcome(None, "bad luck", seconds=1.0)
        return Outcome(abs(rate - 0.3) + abs(steps / 100 - 1) + 0.01, facts={"steps": steps}, seconds=1.0)
