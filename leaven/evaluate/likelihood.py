"""Log-probabilities of continuations under a checkpoint, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaven.errors import UsageError

Pair = tuple[str, str]  # (prefix, continuation)
Losses = NDArray[np.float32]
Progress = Callable[[int, int], None]
_TOKENS = 16_384  # in one forward pass, padding included
_LOGITS = 1 << 28  # held at once: 1 GB in float32


class Scorer:
    """A checkpoint that scores texts.

    Args:
        checkpoint: folder that `transformers` loads.

    A text without a prefix is scored after the tokenizer's end mark (or else its begin mark), as documents are seen
    in training.

    Raises:
        UsageError: missing packages, or no checkpoint there.
    """

    def __init__(self, checkpoint: Path, device: str | None = None) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise UsageError(f"evaluating needs pip install 'leaven[train]' ({error})") from error
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"evaluate: checkpoint {checkpoint}: {str(error).splitlines()[0]}") from error
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self.context = int(self._model.config.max_position_embeddings)
        self._room = max(self.context, min(_TOKENS, _LOGITS // self._model.config.vocab_size))
        ends = (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id)
        self._end: Any = next((one for one in ends if one is not None), None)
        if self._end is None:
            raise UsageError(
                f"evaluate: checkpoint {checkpoint}: its tokenizer has neither an end nor a begin mark"
            )

    def score(
        self, pairs: Sequence[Pair], progress: Progress = lambda done, total: None
    ) -> list[tuple[float, int]]:
        """(sum of natural log-probabilities, number of tokens) of every continuation.

        What does not fit into the context loses tokens of the prefix, from its beginning; a continuation
        longer than the context is read in windows that overlap by half.
        """
        losses = self._losses(
            [(self._encode(prefix), self._encode(text)) for prefix, text in pairs], progress
        )
        return [(-float(one.sum(dtype=np.float64)), len(one)) for one in losses]

    def token_losses(
        self, texts: Sequence[str], progress: Progress = lambda done, total: None
    ) -> list[Losses]:
        """Natural-log loss of every token of every text, shape (tokens,) each; it begins after the end mark."""
        return self._losses([([], self._encode(text)) for text in texts], progress)

    def _losses(self, pairs: Sequence[tuple[list[int], list[int]]], progress: Progress) -> list[Losses]:
        """Losses of the tokens of every second part, given the first (or the end mark) before it."""
        windows = [  # (pair, tokens, how many of the last are scored)
            (number, *window)
            for number, (before, text) in enumerate(pairs)
            for window in _windows(before or [self._end], text, self.context)
        ]
        scored: list[Losses] = [np.empty(0, np.float32)] * len(windows)
        order = sorted(range(len(windows)), key=lambda i: len(windows[i][1]))
        batch: list[int] = []
        for place, i in enumerate(order):
            batch.append(i)
            if place + 1 < len(order) and (len(batch) + 1) * len(windows[order[place + 1]][1]) <= self._room:
                continue
            found = self._forward([windows[j][1] for j in batch])
            for j, line in zip(batch, found, strict=True):
                _, tokens, count = windows[j]
                scored[j] = line[len(tokens) - 1 - count : len(tokens) - 1].copy()
            batch = []
            progress(place + 1, len(order))
        joined: list[list[Losses]] = [[np.empty(0, np.float32)] for _ in pairs]
        for (number, _, _), part in zip(windows, scored, strict=True):
            joined[number].append(part)
        return [np.concatenate(parts) for parts in joined]

    def _forward(self, rows: Sequence[list[int]]) -> Any:
        """Loss of every token but the first of each row, shape (rows, longest - 1); beyond a row's end, anything."""
        import torch

        longest = max(map(len, rows))
        # Filled on the right, where causal attention does not look from: no mask is needed.
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=padded, use_cache=False).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), padded[:, 1:], reduction="none"
            )
        return losses.cpu().numpy()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _windows(before: list[int], text: list[int], context: int) -> list[tuple[list[int], int]]:
    """(tokens, number of the last that are scored) so that every token of `text` is scored once."""
    if len(before) + len(text) <= context or len(text) < context:
        return [((before + text)[-context:], len(text))] if text else []
    joined = before[-1:] + text
    found: list[tuple[list[int], int]] = []
    done = 1
    start = 0
    while done < len(joined):
        stop = min(len(joined), start + context)
        found.append((joined[start:stop], stop - done))
        done, start = stop, start + context // 2
    return found
