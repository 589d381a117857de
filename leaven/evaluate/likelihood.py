"""Log-probabilities of continuations under a checkpoint, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leaven.errors import UsageError

Pair = tuple[str, str]  # (prefix, continuation)
_TOKENS = 16_384  # in one forward pass, padding included


class Scorer:
    """A checkpoint that scores texts.

    Args:
        checkpoint: folder that `transformers` loads.
        end: a text without a prefix is scored after the end mark, as documents are seen in training.

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
        self._end = self._tokenizer.eos_token_id

    def score(
        self, pairs: Sequence[Pair], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[tuple[float, int]]:
        """(sum of natural log-probabilities, number of tokens) of every continuation.

        What does not fit into the context loses tokens of the prefix, from its beginning; a continuation
        longer than the context is read in windows that overlap by half.
        """
        windows: list[tuple[int, list[int], int]] = []  # (pair, tokens, how many of the last are scored)
        for number, (prefix, text) in enumerate(pairs):
            before = self._encode(prefix) or [self._end]
            windows += [(number, *window) for window in _windows(before, self._encode(text), self.context)]
        found = [(0.0, 0)] * len(pairs)
        order = sorted(range(len(windows)), key=lambda i: len(windows[i][1]))
        batch: list[int] = []
        for place, i in enumerate(order):
            batch.append(i)
            last = place + 1 == len(order)
            if last or (len(batch) + 1) * len(windows[order[place + 1]][1]) > _TOKENS:
                sums = self._sums([windows[j][1:] for j in batch])
                for j, value in zip(batch, sums, strict=True):
                    number, _, count = windows[j]
                    found[number] = (found[number][0] + value, found[number][1] + count)
                batch = []
                progress(place + 1, len(order))
        return found

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _sums(self, rows: Sequence[tuple[list[int], int]]) -> list[float]:
        import torch

        longest = max(len(tokens) for tokens, _ in rows)
        fill = [longest - len(tokens) for tokens, _ in rows]
        ids = [tokens + [0] * more for (tokens, _), more in zip(rows, fill, strict=True)]
        seen = [[1] * len(tokens) + [0] * more for (tokens, _), more in zip(rows, fill, strict=True)]
        padded, mask = (torch.tensor(one, device=self._device) for one in (ids, seen))
        with torch.inference_mode():
            logits = self._model(input_ids=padded, attention_mask=mask).logits[:, :-1].float()
            chosen = logits.log_softmax(-1).gather(-1, padded[:, 1:, None])[..., 0]
        return [
            float(line[len(tokens) - 1 - count : len(tokens) - 1].double().sum())
            for line, (tokens, count) in zip(chosen, rows, strict=True)
        ]


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
