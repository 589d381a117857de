"""Tokens: counted with the tokenizer of the model that will be trained, or with one trained here.

Every budget in Leaven (chunks, mixing, training) is in these tokens, so the tokenizer is saved with
the corpus and its fingerprint stands in the corpus's manifest. With none given, a byte-level BPE
(Sennrich et al. 2016; byte alphabet as in GPT-2) is trained on the corpus itself: it needs no
download, encodes any text without loss, and the same texts always give the same file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leaven.document import content_id
from leaven.errors import UsageError

if TYPE_CHECKING:
    import tokenizers

END = "<|endoftext|>"  # stands between documents in training; id 0 of a tokenizer trained here
_BATCH_BYTES = 4_000_000  # encodings take some 50 times the text's memory until they are counted


class Tokenizer:
    """A tokenizer of the `tokenizers` library, for plain text.

    Special tokens are never added, and their spellings inside a document are encoded as ordinary
    text, so that no document can end itself or open a role.

    Args:
        backend: its padding and truncation are switched off.
        name: what a person calls it.
    """

    def __init__(self, backend: tokenizers.Tokenizer, name: str) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self.backend = backend
        self.name = name
        self.fingerprint = content_id(backend.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        return str(self.backend.decode(ids))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, on all cores, holding a few megabytes of text at once."""
        counts: list[int] = []
        batch: list[str] = []
        size = 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size >= _BATCH_BYTES:
                counts += self._count(batch)
                batch, size = [], 0
        return counts + self._count(batch)

    def _count(self, batch: list[str]) -> list[int]:
        encodings = self.backend.encode_batch_fast(batch, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def save(self, path: Path) -> None:
        """Write it as one ``tokenizer.json``, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        os.replace(partial, path)


def load_tokenizer(spec: str) -> Tokenizer:
    """A tokenizer from a ``tokenizer.json``, a folder that holds one, or the Hugging Face hub.

    Args:
        spec: path of a file or folder (a checkpoint, or a corpus that Leaven built), or a hub name
            such as ``org/model``; a local path wins.

    Raises:
        UsageError: there is none, it cannot be read, or the hub cannot be reached.
    """
    path = Path(spec)
    if path.is_dir():
        file = path / "tokenizer.json"
        return _from_file(file, spec) if file.exists() else _from_slow(path, spec)
    if path.is_file():
        return _from_file(path, spec)
    if path.suffix == ".json" or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UsageError(f"tokenizer {spec!r}: no such file or folder")
    return _from_file(_from_hub(spec), spec)


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path | None = None) -> Tokenizer:
    """A byte-level BPE trained on texts, deterministic.

    Args:
        texts: read once.
        vocab_size: at most this many ids (fewer where the texts have too few pairs to merge); at
            least 257: the 256 bytes and `END`.
        out: where to save it as ``tokenizer.json``.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UsageError(f"vocab_size must be at least 257 (256 bytes and {END}), not {vocab_size}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(backend, f"bpe-{backend.get_vocab_size()}")
    if out is not None:
        tokenizer.save(out)
    return tokenizer


def _from_file(path: Path, name: str) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        return Tokenizer(Backend.from_file(str(path)), name)
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise UsageError(f"{path} is not a tokenizer.json: {_line(error)}") from error


def _from_slow(folder: Path, name: str) -> Tokenizer:
    """A checkpoint without tokenizer.json: transformers converts its older files where it can."""
    try:
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except ImportError as error:
        raise UsageError(
            f"{folder} holds no tokenizer.json; to convert its older files, pip install 'leaven[train]'"
        ) from error
    except Exception as error:  # many kinds, one meaning: nothing here that is a tokenizer
        raise UsageError(f"{folder} holds no tokenizer that can be read: {_line(error)}") from error
    return Tokenizer(backend, name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)  # its retries, when offline, would be ten lines before ours
    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except HFValidationError as error:
        raise UsageError(f"tokenizer {name!r} is neither a local path nor a name on the hub") from error
    except Exception as error:  # offline, private, missing: whatever the transport raises
        raise UsageError(
            f"tokenizer {name!r} is not a local path and could not be had from the Hugging Face hub "
            f"({type(error).__name__}); give the path of a tokenizer.json, or leave it out to train one"
        ) from error
    finally:
        set_verbosity(verbosity)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
