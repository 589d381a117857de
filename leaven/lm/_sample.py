"""Completions of a causal language model, many rows at once: the loop under the `transformers` backend.

Written instead of calling `generate` because synthesizers trained on one's own documents (papers 001, 003)
draw millions of tokens from small checkpoints, where `generate` spends much of its time beside the model:

    cache        keys and values are written into room that grows now and then, not copied at every step
    attention    of one new token is two plain products on a processor, where the fused kernel is slower
    draw         by inverse CDF: one uniform number a token, a running sum, a search; never `multinomial`
    top_p        without sorting: draw, keep the token if the mass ranked above it is below `top_p`, else draw
                 again from what is ranked above it. Tokens outside the nucleus are never returned, those
                 inside keep their proportions, so this is exactly nucleus sampling (Holtzman et al. 2020)
    ended rows   leave the batch: looked for every `STRIDE` steps, their places taken by the last rows

The uniform numbers of a row are a function of the row's own key, the step and the try (a counter, no state),
so what a row becomes depends on nothing that is drawn beside it, up to float rounding of the model's scores,
and a longer limit continues the same text.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STRIDE = 8  # steps between two looks at what was drawn: one transfer from the device, one compaction
ROOM = 32  # tokens by which a full cache grows
# What a checkpoint may say about generation that a request decides anyway, or that changes no score.
_HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k"),
    *("max_length", "max_new_tokens", "use_cache", "cache_implementation", "transformers_version"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "_from_model_config"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to draw.

    Args:
        prompt: token ids, at least one.
        limit: most tokens to draw, at least one.
        key: 64 bits that decide the row's random numbers.
        ended: asked at times with all tokens drawn so far: may the row stop here? None never stops it.
    """

    prompt: list[int]
    limit: int
    key: int = 0
    ended: Callable[[list[int]], bool] | None = None


def needs_generate(model: Any) -> str:
    """Why only `model.generate` draws from this model as its makers meant, or ``""``.

    That is so where the checkpoint's generation config changes scores (repetition penalty, suppressed
    tokens, ...), and where a step needs more than tokens, mask, positions and a cache of keys and values.
    """
    said = model.generation_config.to_diff_dict()
    changed = sorted(name for name, value in said.items() if value and name not in _HARMLESS)
    if changed:
        return f"its generation config sets {', '.join(changed)}"
    prepare = type(model).prepare_inputs_for_generation
    own = not prepare.__qualname__.startswith("GenerationMixin.")
    if own or model.config.is_encoder_decoder or model._is_stateful:
        return "its architecture prepares its steps in its own way"
    return "" if "past_key_values" in _parameters(model) else "it keeps no cache"


def _parameters(model: Any) -> Collection[str]:
    """Names of what a forward pass takes."""
    return inspect.signature(model.forward).parameters


def uniforms(keys: np.ndarray, step: int, attempt: int = 0) -> np.ndarray:
    """A number in [0, 1) for every key, float32, at that step and try.

    SplitMix64 (Steele, Lea and Flood 2014) at the place that key, step and try name.
    """
    place = ((step << 16) + attempt + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    mixed = keys.astype(np.uint64) + np.uint64(place)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def pick(logits: Tensor, uniform: Callable[[int], Tensor], temperature: float, top_p: float) -> Tensor:
    """One token for every row of `logits`, shape (rows, vocabulary).

    Args:
        uniform: the rows' uniform numbers at the n-th try, shape (rows,).
        temperature: 0 takes the best token.
        top_p: the nucleus is what transformers' `TopPLogitsWarper` keeps: the most probable tokens up to the
            one with which their mass reaches `top_p`; of equal tokens the later one ranks first.
    """
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    mass = scores.softmax(-1)
    picked = token = _inverse_cdf(mass, uniform(0).to(mass.device))
    if top_p == 1:
        return picked
    rows = torch.arange(len(picked), device=picked.device)
    attempt = 0
    while True:
        higher = mass * ranked_above(scores, token)
        outside = (higher.sum(-1) >= top_p).nonzero()[:, 0]
        if not len(outside):
            return picked
        attempt += 1
        rows, scores, mass = rows[outside], scores[outside], higher[outside]
        token = _inverse_cdf(mass, uniform(attempt).to(rows.device)[rows])
        picked[rows] = token


def ranked_above(scores: Tensor, token: Tensor) -> Tensor:
    """Which tokens rank above the row's `token`: boolean, shape (rows, vocabulary)."""
    import torch

    score = scores.gather(1, token[:, None])
    later = torch.arange(scores.shape[1], device=scores.device) > token[:, None]
    return (scores > score) | ((scores == score) & later)


def _numbers(keys: np.ndarray, step: int, attempt: int) -> Tensor:
    import torch

    return torch.from_numpy(uniforms(keys, step, attempt))


def _inverse_cdf(mass: Tensor, uniform: Tensor) -> Tensor:
    """The token in which ``uniform * sum(mass)`` falls; never one without mass."""
    import torch

    reached = mass.cumsum(-1)
    whole = reached[:, -1:]
    # A product that rounds up to the sum itself would fall behind the last token.
    target = torch.minimum(uniform[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(reached, target, right=True)[:, 0]


def draw(
    model: Any,
    rows: list[Row],
    *,
    stop: Collection[int],
    pad: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """A completion for every row: token ids, with the stop token where the row ended on one.

    A row that its `ended` ends may come back with up to `STRIDE` - 1 tokens more than it needed.

    Args:
        model: a causal language model of `transformers` that `needs_generate` lets pass.
        stop: ids of the tokens that end a row.
        pad: id to fill the left of shorter prompts with; masked.
    """
    import torch

    device = model.device
    longest = max(len(row.prompt) for row in rows)
    tokens = torch.tensor([[pad] * (longest - len(r.prompt)) + r.prompt for r in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in rows], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    accepted = _parameters(model)
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    keys = np.array([row.key for row in rows], dtype=np.uint64)
    cache = _cache(model)
    drawn: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))  # place in the batch -> row
    done = 0
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        while True:
            steps = min(STRIDE, min(rows[r].limit for r in alive) - done)
            block = []
            for step in range(done, done + steps):
                if "position_ids" in accepted:
                    options["position_ids"] = positions
                if step == 1:
                    stack.enter_context(_attention_of_one_token(model))
                logits = model(
                    input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **options
                ).logits[:, -1]
                uniform = functools.partial(_numbers, keys[alive], step)
                tokens = pick(logits, uniform, temperature, top_p)[:, None]
                block.append(tokens)
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                positions = positions[:, -1:] + 1
            done += steps
            lines = torch.cat(block, 1).tolist()
            going = [_goes_on(rows[r], drawn[r], line, stop) for r, line in zip(alive, lines, strict=True)]
            if not any(going):
                return drawn
            if not all(going):
                order = _close_gaps(going)
                alive = [alive[place] for place in order]
                index = torch.tensor(order, device=device)
                cache.reorder_cache(index)
                tokens, mask, positions = tokens[index], mask[index], positions[index]


@contextlib.contextmanager
def _attention_of_one_token(model: Any) -> Iterator[None]:
    """On a processor torch's fused attention of a single query takes several times as long as two plain
    products; there, and after the prompts (which would need their whole matrix of scores), use those. Not
    where heads share keys and values, which the plain products would copy for every head."""
    usual, config = model.config._attn_implementation, model.config
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) not in (None, heads)
    if model.device.type != "cpu" or usual != "sdpa" or shared:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _goes_on(row: Row, drawn: list[int], line: list[int], stop: Collection[int]) -> bool:
    """Add a line of new tokens to what was drawn, up to a stop token; whether the row needs more."""
    end = next((i for i, token in enumerate(line) if token in stop), None)
    if end is not None:
        drawn += line[: end + 1]
        return False
    drawn += line
    return len(drawn) < row.limit and not (row.ended and row.ended(drawn))


def _close_gaps(going: list[bool]) -> list[int]:
    """Places of the rows that go on, in an order that leaves most of them where they are."""
    left = sum(going)
    movers = iter([place for place in range(left, len(going)) if going[place]])
    return [place if going[place] else next(movers) for place in range(left)]


def _cache(model: Any) -> Any:
    """A cache for that model in which every plain layer grows by `ROOM` tokens at a time."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=model.config)
    # Keys and values longer than what was written to them suit models made to be compiled, but not those that
    # take positions from the mask's own length (ALiBi), nor kernels that are given the mask as it is.
    by_mask = "position_ids" not in _parameters(model) or getattr(model.config, "alibi", False)
    plain = model.config._attn_implementation in ("sdpa", "eager")
    if model._can_compile_fullgraph and plain and not by_mask:
        roomy = _roomy_layer()
        cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@functools.cache
def _roomy_layer() -> type[Any]:
    """`DynamicLayer` with room to spare; a class made here so that importing this file loads nothing heavy.

    All of the room is shown to the model, so that it stays one block of memory, which products of matrices
    want; the causal mask hides what is not written yet.
    """
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        """Keys and values of one layer, each (rows, heads, room, width)."""

        keys: Any
        values: Any
        used = 0

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:  # the prompts: no room yet, so that the mask is the usual one
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values, self.used = key_states, value_states, key_states.shape[2]
                return self.keys, self.values
            start, self.used = self.used, self.used + key_states.shape[2]
            if self.used > self.keys.shape[2]:
                size = self.used + ROOM - 1
                self.keys, self.values = (_grown(old, start, size) for old in (self.keys, self.values))
            self.keys[:, :, start : self.used] = key_states
            self.values[:, :, start : self.used] = value_states
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self.used

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            """As long as what the next `update` returns."""
            end = self.used + query_length
            if not self.is_initialized:
                return end, 0
            return (self.keys.shape[2] if end <= self.keys.shape[2] else end + ROOM - 1), 0

        def reorder_cache(self, beam_idx: Any) -> None:
            """Keep the rows of `beam_idx`; only those that change place are copied."""
            moved = (beam_idx != beam_idx.new_tensor(range(len(beam_idx)))).nonzero()[:, 0]
            for room in (self.keys, self.values):
                room[moved] = room[beam_idx[moved]]
            self.keys, self.values = self.keys[: len(beam_idx)], self.values[: len(beam_idx)]

    return Roomy


def _grown(old: Tensor, used: int, size: int) -> Tensor:
    """The same keys or values with room for `size` tokens; what is not written is zero, not noise."""
    rows, heads, _, width = old.shape
    new = old.new_zeros(rows, heads, size, width)
    new[:, :, :used] = old[:, :, :used]
    return new
