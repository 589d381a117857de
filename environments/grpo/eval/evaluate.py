"""The value of a run: the share of hidden questions that its model answers correctly, greedily.

Only the weights are taken from the run's copy (its path is in the variable COPY): a safetensors file whose names
and shapes must be those of the policy in base.py, which lies here unchanged beside this file. A run has never seen
a hidden question, even in its base: which are hidden follows from their numbers (questions.py), checked here again.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import NoReturn

import torch
from base import DEVICE, Policy, generate
from questions import correct, draw, hidden, prompt
from safetensors import SafetensorError
from safetensors.torch import load_file

QUESTIONS = 1000
DRAW = "hidden questions"  # seeds which of them are asked


def fail(why: str) -> NoReturn:
    raise SystemExit(f"evaluate.py: {why}")


def load(path: Path) -> Policy:
    """The policy with the weights of a run."""
    policy = Policy()
    wanted = {name: (weight.shape, weight.dtype) for name, weight in policy.state_dict().items()}
    size = sum(weight.numel() * weight.element_size() for weight in policy.state_dict().values())
    if not path.is_file():
        fail("the run wrote no model.safetensors")
    if path.stat().st_size > size + 100_000:
        fail(f"model.safetensors has {path.stat().st_size} bytes, but the policy only {size}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        fail(f"model.safetensors cannot be read: {error}")
    found = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            fail(f"model.safetensors: {name} is {found.get(name)}, but must be {wanted.get(name)}")
        if not weights[name].isfinite().all():
            fail(f"model.safetensors: {name} is not finite")
    policy.load_state_dict(weights)
    return policy


def accuracy(policy: Policy, questions: list[tuple[int, int]]) -> float:
    prompts = torch.tensor([prompt(question) for question in questions], device=DEVICE)
    answers = generate(policy.to(DEVICE).eval(), prompts, temperature=0).tolist()
    return sum(correct(q, a) for q, a in zip(questions, answers, strict=True)) / len(questions)


def main() -> None:
    questions = draw(QUESTIONS, random.Random(DRAW), of_hidden=True)
    if not all(hidden(question) for question in questions):
        fail("a question that training may have seen")
    score = accuracy(load(Path(os.environ["COPY"]) / "model.safetensors"), questions)
    print(json.dumps({"score": score, "questions": len(questions)}))


if __name__ == "__main__":
    main()
