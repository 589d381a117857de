"""Plain GRPO (Shao et al., 2024) from the base model, within the budget; writes model.safetensors.

    SEED=0 BUDGET_ANSWERS=24576 python train.py

For every question a group of answers is sampled; an answer is worth how much better it is than its group; the
ratio of its probability to the one it was sampled with is clipped.
"""

from __future__ import annotations

import copy
import os
import random

import torch
from base import DEVICE, Policy, base, generate
from questions import END, PROMPT, Checker, draw, prompt
from safetensors.torch import save_file
from torch import Tensor

SEED = int(os.environ.get("SEED", "0"))

QUESTIONS = 64  # questions of one round
GROUP = 8  # answers to each
EPOCHS = 1  # passes over a round's answers
MINIBATCHES = 1  # updates of one pass
LEARNING_RATE = 0.0001
SCHEDULE = "constant"  # constant, or linear down to zero
CLIP_LOW = 0.2  # the ratio counts from 1 - CLIP_LOW
CLIP_HIGH = 0.2  # to 1 + CLIP_HIGH
KL = 0.04  # weight of the distance from the base model
ENTROPY = 0.0  # weight of the entropy, which keeps answers varied
TEMPERATURE = 1.0  # of sampling
NORMALIZE = True  # divide what an answer is worth by the standard deviation of its group


def written(answers: Tensor) -> Tensor:
    """Which characters of answers (n, ANSWER) the policy wrote: those up to the first END."""
    ends = (answers == END).cumsum(1)
    return (ends == 0) | ((ends == 1) & (answers == END))


def chances(policy: Policy, prompts: Tensor, answers: Tensor) -> Tensor:
    """Logarithms of the probabilities of every character at each place of answers: (n, ANSWER, characters)."""
    logits = policy(torch.cat([prompts, answers[:, :-1]], 1))[:, PROMPT - 1 :]
    return (logits / TEMPERATURE).log_softmax(-1)


def worth(rewards: Tensor) -> Tensor:
    """What each answer is worth, from rewards (QUESTIONS, GROUP): (n,)."""
    centred = rewards - rewards.mean(1, keepdim=True)
    if NORMALIZE:
        centred = centred / (rewards.std(1, keepdim=True) + 1e-4)
    return centred.flatten()


def objective(
    policy: Policy, prompts: Tensor, answers: Tensor, advantage: Tensor, old: Tensor, reference: Tensor
) -> Tensor:
    """The loss of some answers; `old` and `reference` (n, ANSWER) are what sampler and base gave what was written."""
    every = chances(policy, prompts, answers)
    new = every.gather(-1, answers[..., None])[..., 0]
    ratio = (new - old).exp()
    gain = torch.minimum(
        ratio * advantage[:, None], ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage[:, None]
    )
    distance = (reference - new).exp() - (reference - new) - 1
    entropy = -(every.exp() * every).sum(-1)
    mask = written(answers)
    return -((gain - KL * distance + ENTROPY * entropy) * mask).sum() / mask.sum()


def main() -> None:
    torch.manual_seed(SEED)
    dice, generator = random.Random(SEED), torch.Generator(DEVICE).manual_seed(SEED)
    policy, checker = base(), Checker()
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    size, step = QUESTIONS * GROUP, 0
    while checker.allows(size):
        left = 1 - checker.fraction()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * {"constant": 1.0, "linear": left}[SCHEDULE]
        questions = [question for question in draw(QUESTIONS, dice) for _ in range(GROUP)]
        prompts = torch.tensor([prompt(question) for question in questions], device=DEVICE)
        answers = generate(policy, prompts, TEMPERATURE, generator)
        rewards = torch.tensor(checker.rewards(questions, answers.tolist()), device=DEVICE)
        advantage = worth(rewards.view(QUESTIONS, GROUP))
        with torch.no_grad():
            old, first = (
                chances(model, prompts, answers).gather(-1, answers[..., None])[..., 0]
                for model in (policy, reference)
            )
        for _ in range(EPOCHS):
            for part in torch.randperm(size, generator=generator, device=DEVICE).chunk(MINIBATCHES):
                loss = objective(
                    policy, prompts[part], answers[part], advantage[part], old[part], first[part]
                )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
        step += 1
        if step % 4 == 1:
            print(f"round {step} answers {checker.checked} reward {rewards.mean().item():.3f}", flush=True)
    save_file({name: weight.cpu() for name, weight in policy.state_dict().items()}, "model.safetensors")


if __name__ == "__main__":
    main()
