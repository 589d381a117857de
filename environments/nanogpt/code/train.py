"""Trains the GPT on the stories within the budget and writes model.safetensors, which answer.py reads.

    SEED=0 BUDGET_TOKENS=196608 python train.py

Everything that may be chosen stands in config.py; the budget is kept by setting.py.
"""

from __future__ import annotations

import gzip
import json
import math

import config
import setting
import torch
from model import CONTEXT, GPT
from optimizer import optimizers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

DATA = "stories.jsonl.gz"  # JSON lines with a field "text"
BATCH = config.BATCH * setting.BATCH_TIMES


def load(path: str) -> Tensor:
    """The texts one after the other, as bytes: (bytes,)."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        text = "\n\n".join(json.loads(line)["text"] for line in lines)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def draw(data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows at random places and, for each of their bytes, the one after it: both (BATCH, CONTEXT)."""
    starts = torch.randint(len(data) - CONTEXT, (BATCH, 1), generator=generator)
    windows = data[starts + torch.arange(CONTEXT + 1)].long().to(setting.DEVICE)
    return windows[:, :-1], windows[:, 1:]


def scale(fraction: float) -> float:
    """The learning rate at this share of the budget, relative to LEARNING_RATE."""
    if fraction < config.WARMUP:
        return (fraction + 0.01) / (config.WARMUP + 0.01)  # not zero at the first step
    left = (1 - fraction) / (1 - config.WARMUP)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[config.SCHEDULE]


def main() -> None:
    torch.manual_seed(setting.SEED)
    generator = torch.Generator().manual_seed(setting.SEED)
    data, model, budget = load(DATA), GPT().to(setting.DEVICE), setting.Budget()
    steppers = optimizers(model)
    average = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    step, shown = 0, -1
    while budget.allows(BATCH * CONTEXT):
        for group in (group for stepper in steppers for group in stepper.param_groups):
            group["lr"] = config.LEARNING_RATE * scale(budget.fraction())
        inputs, targets = draw(data, generator)
        budget.spend(inputs.numel())
        with torch.autocast(setting.DEVICE, torch.bfloat16, enabled=setting.DEVICE != "cpu"):
            logits, _ = model(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.CLIP)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        decay = min(config.EMA, (step + 1) / (step + 10))  # the first weights are soon forgotten
        for name, weight in model.state_dict().items():
            average[name].lerp_(weight, 1 - decay)
        step += 1
        if int(budget.fraction() * 20) > shown:
            shown = int(budget.fraction() * 20)
            print(f"step {step} bytes {budget.tokens} loss {loss.item():.4f}", flush=True)
    save_file({name: weight.contiguous().cpu() for name, weight in average.items()}, "model.safetensors")


if __name__ == "__main__":
    main()
