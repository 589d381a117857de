"""Predicts the next byte of every window, one byte at a time, for the evaluation, which never shows what follows.

The protocol, on standard input and output; all numbers are little-endian:

1. in: two uint32: the number of windows W and of steps T
2. T times: in: W bytes, the next byte of every window; out: W x 256 float32, window by window: logits (or
   log-probabilities) of the byte that comes after it

Anything else on standard output breaks it: print to standard error. The evaluation normalises what it gets, so
only differences within a window count. This file may be changed with the model: one that keeps no past may keep
the bytes so far instead and compute all of them again at each step, if the time suffices.
"""

from __future__ import annotations

import struct
import sys

import setting
import torch
from model import GPT, Past
from safetensors.torch import load_file


def read(size: int) -> bytes:
    """Exactly so many bytes of standard input."""
    found = sys.stdin.buffer.read(size)
    if len(found) != size:
        raise SystemExit(f"answer.py: the evaluation ended in the middle: {len(found)} of {size} bytes")
    return found


@torch.inference_mode()
def main() -> None:
    model = GPT().eval()
    model.load_state_dict(load_file("model.safetensors"))
    model.to(setting.DEVICE)
    windows, steps = struct.unpack("<II", read(8))
    past: list[Past] | None = None
    for _ in range(steps):
        new = torch.frombuffer(bytearray(read(windows)), dtype=torch.uint8).long()
        logits, past = model(new[:, None].to(setting.DEVICE), past)
        sys.stdout.buffer.write(logits[:, 0].float().cpu().numpy().astype("<f4").tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
