"""The value of a run: 1 / the validation loss in nats per byte, of predictions that were asked for one by one.

Nothing of the run is imported or read here. An answerer in a sandbox of its own (answer.py of the run's copy) is
told one byte of every window, must predict the next, and only then is told it; so no model, however changed, sees
what it is to predict. The protocol, through the file descriptors in the variables ASK and ANSWER; all numbers are
little-endian:

1. ask: two uint32: the number of windows W and of steps T
2. T times: ask: W bytes, the next byte of every window; answer: W x 256 float32, window by window: logits or
   log-probabilities of the byte that comes after it

Windows are stretches of EVAL_CONTEXT bytes from the beginning of every document. What comes is normalised here
(log-softmax in double precision), so a sum above 1 gains nothing. Any breach ends the evaluation with one line on
standard error.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import BinaryIO, NoReturn

import numpy as np

DATA = "documents.jsonl"  # JSON lines with a field "text"
VOCABULARY = 256
BYTES = 2560  # most bytes that are asked for of one document


def fail(why: str) -> NoReturn:
    raise SystemExit(f"evaluate.py: {why}")


def windows(path: str, context: int) -> np.ndarray:
    """Stretches of context + 1 bytes, each beginning with the last byte of the one before: (W, context + 1)."""
    found = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            text = np.frombuffer(json.loads(line)["text"].encode(), dtype=np.uint8)
            found += [text[i : i + context + 1] for i in range(0, min(BYTES, len(text) - context), context)]
    if not found:
        fail(f"no document of {path} has more than {context} bytes")
    return np.stack(found)


def ask(pipe: BinaryIO, data: bytes, place: str) -> None:
    try:
        pipe.write(data)
        pipe.flush()
    except BrokenPipeError:
        fail(f"the answerer ended before {place}")


def answer(pipe: BinaryIO, count: int, place: str) -> np.ndarray:
    """Logits of every window: (count, 256), double precision."""
    size = count * VOCABULARY * 4
    data = pipe.read(size)
    if len(data) != size:
        fail(f"the answerer ended at {place}: {len(data)} of {size} bytes came")
    logits = np.frombuffer(data, dtype="<f4").reshape(count, VOCABULARY).astype(np.float64)
    if not np.isfinite(logits).all():
        fail(f"an answer that is not finite at {place}")
    return logits


def main() -> None:
    text = windows(DATA, int(os.environ.get("EVAL_CONTEXT", "128")))
    count, steps = text.shape[0], text.shape[1] - 1
    losses = np.zeros((steps, count))
    with (
        os.fdopen(int(os.environ["ASK"]), "wb", buffering=0) as asked,
        os.fdopen(int(os.environ["ANSWER"]), "rb") as answered,
    ):
        ask(asked, struct.pack("<II", count, steps), "the first step")
        for i in range(steps):
            place = f"step {i + 1} of {steps}"
            ask(asked, text[:, i].tobytes(), place)
            logits = answer(answered, count, place)
            top = logits.max(axis=1)
            total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
            losses[i] = total - logits[np.arange(count), text[:, i + 1]]
    loss = float(losses.mean())
    if not loss > 0:
        fail(f"a loss of {loss} is not one of a model")
    print(json.dumps({"score": 1 / loss, "loss": loss, "bytes": losses.size}))


if __name__ == "__main__":
    sys.exit(main())
