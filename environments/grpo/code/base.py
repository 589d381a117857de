"""The policy and the base model that training starts from. Protected: nobody may change this file.

The policy is a character-level transformer. The base is the same in every run, whatever its SEED: it has seen
WARMUP_STEPS batches of training questions with their answers, too few to be good at them.
"""

from __future__ import annotations

import os
import random

import torch
from questions import ALPHABET, ANSWER, END, PROMPT, draw, encode, prompt
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = int(os.environ.get("WIDTH", "64"))
DEPTH = int(os.environ.get("DEPTH", "2"))
WARMUP_STEPS = int(os.environ.get("WARMUP_STEPS", "190"))
DEVICE = os.environ.get("DEVICE", "cpu")  # cpu or cuda
HEAD_WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, WIDTH // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), WIDTH)
        self.positions = nn.Embedding(PROMPT + ANSWER, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(ALPHABET))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, time, characters) of what follows each of `tokens` (n, time)."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


@torch.no_grad()
def generate(
    policy: Policy, prompts: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Answers (n, ANSWER) to prompts (n, PROMPT); all END after the first END. Temperature 0 is greedy."""
    tokens = prompts
    open_ = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    for _ in range(ANSWER):
        logits = policy(tokens)[:, -1]
        if temperature:
            chances = (logits / temperature).softmax(-1)
            new = torch.multinomial(chances, 1, generator=generator)[:, 0]
        else:
            new = logits.argmax(-1)
        new = torch.where(open_, new, END)
        open_ &= new != END
        tokens = torch.cat([tokens, new[:, None]], 1)
    return tokens[:, PROMPT:]


def base() -> Policy:
    """The base model, always the same one."""
    dice = random.Random(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy()
    policy.to(DEVICE)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for step in range(WARMUP_STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20)
        questions = draw(64, dice)
        answers = [encode(f"{sum(q)}\n".ljust(ANSWER, "\n")) for q in questions]
        tokens = torch.tensor([prompt(q) + a for q, a in zip(questions, answers, strict=True)], device=DEVICE)
        logits = policy(tokens[:, :-1])[:, PROMPT - 1 :]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, PROMPT:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy
