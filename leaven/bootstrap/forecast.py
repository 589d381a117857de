"""How long a run that trains models will take on this machine, told before it begins.

    what is to be done, in tokens --a few steps of each kind, really done here--> seconds by step

The steps are timed on weights without meaning: training in batches of the sizes to come, drawing as many texts at once
as will be drawn, embedding some documents. What is not foreseen: reading, cleaning, scoring, and texts that are longer
or shorter than documents of the corpus.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leaven.bootstrap import Bootstrap
from leaven.generate._training import Work
from leaven.train import Train
from leaven.train.shapes import config_of, shape

STEPS = 3  # of training that are timed, after one that is not
EMBEDDED = 32  # documents


@dataclass(frozen=True)
class Arms:
    """Models that the plan trains alike.

    Args:
        models: how many; `tokens`: that each of them sees.
    """

    training: Train
    context: int
    tokens: int
    models: int


@dataclass(frozen=True)
class Line:
    """One kind of work: what, how much, and how long in seconds."""

    what: str
    amount: int
    unit: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.what} {self.amount:,} {self.unit}: {minutes(self.seconds)}"


def minutes(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(trainer: Bootstrap, work: Sequence[Work], arms: Arms | None, texts: Sequence[str]) -> list[Line]:
    """What will be done, and how long it takes.

    Args:
        work: of every method that trains its writer.
        arms: the models trained on the mix.
        texts: some documents, to be embedded.
    """
    base = trainer.training
    vocabulary = trainer.tokenizer.vocab_size
    lines: list[Line] = []

    def add(what: str, amount: int, unit: str, speed: float) -> None:
        if amount:
            lines.append(Line(what, amount, unit, amount / speed))

    embedded = sum(one.embedded for one in work)
    if embedded:
        some = list(texts[:EMBEDDED])
        trainer.embed(some[:1])  # loads the model
        started = time.monotonic()
        trainer.embed(some[1:])
        speed = max(1, len(some) - 1) / max(1e-3, time.monotonic() - started)
        add("embedding", embedded, "documents", speed)
    trained = training_speed(base, vocabulary, trainer.context)
    add("pretraining", trainer.tokens if trainer.pretrains else 0, "tokens", trained)
    # Later training is of rows of all lengths and never compiled.
    plain = training_speed(base.model_copy(update={"compile": False}), vocabulary, trainer.context)
    add("tuning", sum(one.tuned for one in work), "tokens", plain)
    add("self-training", sum(one.continued for one in work), "tokens", plain)
    drawn = sum(one.drawn for one in work)
    if drawn:
        speed = drawing_speed(base, vocabulary, trainer.context, trainer.batch_size, trainer.dtype)
        add("writing", drawn, "tokens", speed)
    if arms is not None:
        alike = (arms.training, arms.context) == (base, trainer.context)
        speed = trained if alike else training_speed(arms.training, vocabulary, arms.context)
        add(f"training {arms.models} models,", arms.models * arms.tokens, "tokens", speed)
    return lines


def _model(training: Train, vocabulary: int, context: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any
    if training.checkpoint is not None:
        model = AutoModelForCausalLM.from_pretrained(training.checkpoint, local_files_only=True)
    else:
        assert training.shape is not None
        found = shape(training.shape) if isinstance(training.shape, str) else training.shape
        config = config_of(found, vocab_size=vocabulary, context=context, end=0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def training_speed(training: Train, vocabulary: int, context: int) -> float:
    """Tokens a second of training steps, compiled if the training will be (what was compiled is kept for it)."""
    import torch

    from leaven.train.fit import has_bfloat16, keep_memory

    keep_memory()
    model = _model(training, vocabulary, context)
    if training.compile:
        torch._dynamo.reset()
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = training.batch_size // training.accumulate
    tokens = torch.randint(vocabulary, (rows, context), device=model.device)
    bfloat16 = training.precision == "bfloat16" or (training.precision == "auto" and has_bfloat16())
    seconds = []
    for _ in range(1 + STEPS):
        started = time.monotonic()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.monotonic() - started)
    return tokens.numel() / min(seconds[1:])


def drawing_speed(training: Train, vocabulary: int, context: int, batch_size: int, dtype: str) -> float:
    """Tokens a second of drawing a batch of texts: prompts of a third of the context, texts of as much."""
    import torch

    from leaven.lm import _sample

    model = _model(training, vocabulary, context).to(getattr(torch, dtype)).eval()
    prompt = [1] * max(1, context // 3)
    speed = 0.0
    for limit in (1, max(1, context // 3)):  # the first is not timed: it loads what the second needs
        rows = [_sample.Row(prompt, limit, key) for key in range(batch_size)]
        started = time.monotonic()
        _sample.draw(model, rows, stop=set(), pad=0, temperature=1.0, top_p=0.9)
        speed = batch_size * limit / (time.monotonic() - started)
    return speed
