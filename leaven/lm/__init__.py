"""A language model behind one small interface, and the response store.

    base.py         request, answer, usage; what a backend is and which failures it may report
    openai.py       backend: any OpenAI-compatible server
    transformers.py backend: a local checkpoint in this process
    replay.py       backend: recorded answers
    store.py        every answer ever received, found by what was asked
    control.py      how many requests may be in flight
    budget.py       prices, caps, the ledger
    loop.py         the event loop they run on
    client.py       the four above around a backend: `LanguageModel`
    structured.py   text to validated JSON
    ask.py          what a method sees: prompts, steps, rejects

To add a backend: one file with a frozen `Config` (its `backend` literal names it) whose `open()` returns
an object with `base.Backend`'s members, and one entry in `ModelConfig` below.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from leaven.lm import openai, replay, transformers

ModelConfig = Annotated[openai.Config | transformers.Config | replay.Config, Field(discriminator="backend")]
