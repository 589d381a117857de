"""What the setting fixes, and the budget. Protected: a run in which this file differs is not evaluated.

`env.yaml` sets the variables. Exactly one of two budgets holds:

- BUDGET_TOKENS: so many training bytes go through the model, however long that takes (within the limit on
  seconds). The same SEED then gives the same weights, bit for bit, on one thread of one kind of processor.
- BUDGET_SECONDS: training ends so many seconds after this file is imported, whatever was seen by then.
"""

from __future__ import annotations

import os
import time

SEED = int(os.environ.get("SEED", "0"))
DEVICE = os.environ.get("DEVICE", "cpu")  # cpu or cuda; on cuda the model computes in bfloat16
BUDGET_TOKENS = int(os.environ.get("BUDGET_TOKENS", "0"))
BUDGET_SECONDS = float(os.environ.get("BUDGET_SECONDS", "0"))

# Multiples of the sizes in config.py, so that one code base serves the small setting and the large ones
WIDTH_TIMES = int(os.environ.get("WIDTH_TIMES", "1"))
HEAD_TIMES = int(os.environ.get("HEAD_TIMES", "1"))  # of HEAD_WIDTH
DEPTH_TIMES = int(os.environ.get("DEPTH_TIMES", "1"))
CONTEXT_TIMES = int(os.environ.get("CONTEXT_TIMES", "1"))
BATCH_TIMES = int(os.environ.get("BATCH_TIMES", "1"))

_START = time.monotonic()
if (BUDGET_TOKENS > 0) == (BUDGET_SECONDS > 0):
    raise SystemExit("set exactly one of the variables BUDGET_TOKENS and BUDGET_SECONDS")


class Budget:
    """Counts what training has used. Every byte that is fed to the model in training is to be declared."""

    def __init__(self) -> None:
        self.tokens = 0

    def fraction(self) -> float:
        """Share of the budget that is used, from 0 to 1: what a schedule goes by."""
        if BUDGET_TOKENS:
            return self.tokens / BUDGET_TOKENS
        return min(1.0, (time.monotonic() - _START) / BUDGET_SECONDS)

    def allows(self, tokens: int) -> bool:
        """Whether a step of so many bytes may begin."""
        return self.tokens + tokens <= BUDGET_TOKENS if BUDGET_TOKENS else self.fraction() < 1

    def spend(self, tokens: int) -> None:
        """Declare a step of so many bytes. A step that began in time may end a little after it."""
        if BUDGET_TOKENS and not self.allows(tokens):
            raise SystemExit(f"the budget does not allow {tokens} bytes more after {self.tokens}")
        self.tokens += tokens
