"""A byte-level GPT. One token is one byte, so the vocabulary has 256 entries.

`GPT.forward` serves training (whole windows) and answering (one new byte of every window at a time, with what
attention computed for the bytes before it).
"""

from __future__ import annotations

import config
import setting
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 256
DEPTH = config.DEPTH * setting.DEPTH_TIMES
WIDTH = config.WIDTH * setting.WIDTH_TIMES
HEAD_WIDTH = config.HEAD_WIDTH * setting.HEAD_TIMES
HEADS = WIDTH // HEAD_WIDTH
CONTEXT = config.CONTEXT * setting.CONTEXT_TIMES

Past = tuple[Tensor, Tensor]  # keys and values of the bytes before, each (windows, heads, time, head width)


def chosen(name: str, *allowed: str) -> str:
    """The value of a constant of config.py, which must be one of those allowed."""
    value: str = getattr(config, name)
    if value not in allowed:
        raise SystemExit(f"config.py: {name} is {value!r}, but must be one of {', '.join(allowed)}")
    return value


ACTIVATION = chosen("ACTIVATION", "gelu", "relu2", "silu", "swiglu")
POSITIONS = chosen("POSITIONS", "learned", "rope", "alibi")
NORM = chosen("NORM", "layer", "rms")
NORM_PLACE = chosen("NORM_PLACE", "pre", "post")
if WIDTH % HEAD_WIDTH:
    raise SystemExit(f"config.py: WIDTH {WIDTH} is not a multiple of HEAD_WIDTH {HEAD_WIDTH}")


def norm() -> nn.Module:
    return nn.LayerNorm(WIDTH) if NORM == "layer" else nn.RMSNorm(WIDTH, eps=1e-6)


def rotate(x: Tensor, start: int) -> Tensor:
    """Rotary position embedding (Su et al., 2021): (..., time, head width), the first at position `start`."""
    half = x.shape[-1] // 2
    speed = 10000 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(start, start + x.shape[-2], device=x.device)[:, None] * speed
    a, b = x.split(half, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).to(x.dtype)


def alibi(queries: int, keys: int, device: torch.device) -> Tensor:
    """A penalty that grows with the distance (Press et al., 2022), causal: (heads, queries, keys)."""
    slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1, device=device) / HEADS)
    ends = torch.arange(keys - queries, keys, device=device)
    distance = ends[:, None] - torch.arange(keys, device=device)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        windows, time, _ = x.shape
        q, k, v = self.qkv(x).view(windows, time, 3, HEADS, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        if POSITIONS == "rope":
            start = past[0].shape[2] if past else 0
            q, k = rotate(q, start), rotate(k, start)
        if past:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if POSITIONS == "alibi":
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=alibi(time, k.shape[2], x.device).to(q.dtype)
            )
        else:  # with a past there is one new byte, which may see everything
            y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.out(y.transpose(1, 2).reshape(windows, time, WIDTH)), (k, v)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        gated = ACTIVATION == "swiglu"
        hidden = config.MLP_TIMES * WIDTH * 2 // 3 if gated else config.MLP_TIMES * WIDTH
        self.up = nn.Linear(WIDTH, 2 * hidden if gated else hidden, bias=False)
        self.out = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if ACTIVATION == "swiglu":
            gate, x = x.chunk(2, dim=-1)
            return self.out(F.silu(gate) * x)
        return self.out(
            {"gelu": F.gelu, "silu": F.silu, "relu2": lambda x: F.relu(x).square()}[ACTIVATION](x)
        )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), MLP()
        self.norm1, self.norm2 = norm(), norm()
        self.dropout = nn.Dropout(config.DROPOUT)

    def forward(self, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        if NORM_PLACE == "pre":
            y, past = self.attention(self.norm1(x), past)
            x = x + self.dropout(y)
            return x + self.dropout(self.mlp(self.norm2(x))), past
        y, past = self.attention(x, past)
        x = self.norm1(x + self.dropout(y))
        return self.norm2(x + self.dropout(self.mlp(x))), past


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH) if POSITIONS == "learned" else None
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = norm()
        self.head = None if config.TIED else nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, weight in self.named_parameters():
            if (
                weight.dim() == 2
            ):  # what adds to the residual stream begins smaller, so that depth adds no variance
                deep = (2 * DEPTH) ** -0.5 if name.endswith("out.weight") else 1.0
                nn.init.normal_(weight, std=config.INIT_STD * deep)

    def forward(self, tokens: Tensor, past: list[Past] | None = None) -> tuple[Tensor, list[Past]]:
        """Logits (windows, time, 256) of what follows each of `tokens` (windows, time), and the new past.

        With a `past`, `tokens` holds one new byte of every window.
        """
        x = self.embedding(tokens)
        if self.positions is not None:
            start = past[0][0].shape[2] if past else 0
            x = x + self.positions(torch.arange(start, start + tokens.shape[1], device=tokens.device))
        new: list[Past] = []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, past[i] if past else None)
            new.append(kept)
        x = self.norm(x)
        return (F.linear(x, self.embedding.weight) if self.head is None else self.head(x)), new
