"""Model shapes by name: Llama-style configurations that `transformers` builds and loads anywhere.

    mga-134m .. mga-13b   paper 000, table 9; hidden size of the smallest corrected from 1,204 to 1,024. Its
                          totals of 134M, 377M and 1.68B count no embeddings; those of 7B and 13B fit no count
    001-350m, 001-1.4b    paper 001, table 5
    sbp-3b, sbp-6b        paper 003, table B.9: grouped-query attention, normalised queries and keys (QK-norm)
    1m, 3m, 10m, 30m      ours, for a laptop and for tests

A vocabulary belongs to the tokenizer, not to the shape; parameter counts in the papers are with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.errors import UsageError, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Shape(BaseModel):
    """A decoder of the Llama family.

    Args:
        hidden: width of the residual stream.
        inner: width inside the gated feed-forward layers.
        heads: of the queries; `kv_heads`: of keys and values (fewer: grouped-query attention).
        head_dim: None is hidden / heads.
        qk_norm: normalise queries and keys (built as Qwen3, which is Llama with that).
        tied: the output layer shares the embedding's weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    hidden: int = Field(ge=8)
    inner: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2)
    qk_norm: bool = False
    tied: bool = False
    rope_theta: float = 10_000.0

    @model_validator(mode="after")
    def _fits(self) -> Shape:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    def parameters(self, vocab_size: int) -> int:
        """Number of parameters with a vocabulary of that size."""
        head = self.head_dim or self.hidden // self.heads
        queries, keys = self.heads * head, (self.kv_heads or self.heads) * head
        attention = self.hidden * (2 * queries + 2 * keys) + (2 * head if self.qk_norm else 0)
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        embeddings = vocab_size * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + self.hidden + embeddings


SHAPES: Mapping[str, Shape] = {
    "1m": Shape(hidden=128, inner=352, layers=3, heads=4, tied=True),
    "3m": Shape(hidden=192, inner=512, layers=5, heads=6, tied=True),
    "10m": Shape(hidden=320, inner=864, layers=7, heads=5, tied=True),
    "30m": Shape(hidden=512, inner=1376, layers=9, heads=8, tied=True),
    "mga-134m": Shape(hidden=1024, inner=4096, layers=8, heads=8),
    "mga-377m": Shape(hidden=1536, inner=6144, layers=10, heads=12),
    "mga-1.7b": Shape(hidden=2560, inner=10_240, layers=16, heads=20),
    "mga-7b": Shape(hidden=4096, inner=8192, layers=32, heads=32, kv_heads=8),
    "mga-13b": Shape(hidden=4096, inner=12_288, layers=48, heads=32, kv_heads=8),
    "001-350m": Shape(hidden=960, inner=2560, layers=28, heads=15),
    "001-1.4b": Shape(hidden=2048, inner=8192, layers=16, heads=32),
    "sbp-3b": Shape(hidden=3072, inner=8064, layers=26, heads=24, kv_heads=8, qk_norm=True),
    "sbp-6b": Shape(hidden=4096, inner=13_056, layers=32, heads=32, kv_heads=8, qk_norm=True),
}


def shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in SHAPES:
        raise UsageError(f"unknown model shape {name!r}; {nearest(name, SHAPES)}")
    return SHAPES[name]


def config_of(found: Shape, *, vocab_size: int, context: int, end: int) -> PretrainedConfig:
    """The `transformers` configuration of a shape.

    Args:
        context: longest sequence.
        end: id of the mark after a document.
    """
    from transformers import LlamaConfig, Qwen3Config

    fields: dict[str, Any] = {
        "vocab_size": vocab_size, "hidden_size": found.hidden, "intermediate_size": found.inner,
        "num_hidden_layers": found.layers, "num_attention_heads": found.heads,
        "num_key_value_heads": found.kv_heads or found.heads,
        "head_dim": found.head_dim or found.hidden // found.heads, "max_position_embeddings": context,
        "tie_word_embeddings": found.tied, "rms_norm_eps": 1e-5, "eos_token_id": end, "bos_token_id": None,
        "pad_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": found.rope_theta},
    }  # fmt: skip
    kind = Qwen3Config if found.qk_norm else LlamaConfig
    return kind(**fields)
