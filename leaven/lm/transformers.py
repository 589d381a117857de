"""A local checkpoint in this process, batched: for small models, tests and machines without a server.

Requests that arrive together are drawn together, up to `batch_size` of equal temperature and `top_p`, by the
loop in `_sample.py`. What a request is answered depends on the checkpoint, the request and the seed alone,
not on what else was in its batch (but for the rounding of the model's own scores). A checkpoint whose
generation config changes scores (a repetition penalty, ...) or whose architecture needs more than a cache of
keys and values is drawn from by transformers' `generate`, one batch one draw, which a warning says.

A tokenizer with a chat template is used as a chat model, one without as a base model. The checkpoint is
identified by the contents of its files, not by its path: a retrained model at the same place never returns
the old one's answers.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.errors import UsageError
from leaven.lm import _sample
from leaven.lm.base import Answer, Messages, Refused, Request, Sampling, Usage, scores_to_text

_MOST_LOGITS = 1 << 28  # scores of all tokens of the vocabulary held at once: 1 GB in float32


class Config(BaseModel):
    """A checkpoint that `transformers` can load.

    Args:
        path: its folder.
        name: shown as the model of every row; by default the folder's name.
        batch_size: most requests drawn in one call.
        device: as torch names it; None takes a GPU where there is one.
        dtype: to compute in; ``auto`` is the checkpoint's own. A float32 checkpoint draws up to twice as fast
            in ``bfloat16`` on a processor that has it, from nearly the same distribution: on models of 0.7M
            to 2M parameters the next token's moved by 0.003 to 0.010 (mean total variation), no more than
            in the bf16 autocast they were trained with (0.002 to 0.008). But it changes 1 to 2% of greedy
            choices, so it must be asked for, and its answers have keys of their own in the store.
        seed: of the sampling, together with each request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: Literal["transformers"] = "transformers"
    path: PlanPath
    name: str | None = None
    batch_size: int = Field(32, ge=1)
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0

    def open(self) -> Transformers:
        return Transformers(self)


@dataclass(slots=True)
class _Job:
    tokens: list[int]
    sampling: Sampling
    score: bool
    key: int
    done: asyncio.Future[Answer]


class Transformers:
    """See `Config`."""

    paid = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = config.name or config.path.name
        rounded = f" {config.dtype}" if config.dtype in ("bfloat16", "float16") else ""
        self.identity = f"transformers {weights_hash(config.path)} seed {config.seed}{rounded}"
        self.concurrency = 2 * config.batch_size  # the next batch forms while one is drawn
        self._jobs: list[_Job] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leaven-transformers")
        self._loop_task: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._loaded = False

    async def generate(self, request: Request) -> Answer:
        """Join the next batch; the checkpoint is loaded at the first request."""
        if not self._loaded:
            self._load()
            self._loaded = True
        tokens = self._encode(request)
        if len(tokens) >= self._context and not request.score:
            raise Refused(
                f"{self.model}: the prompt has {len(tokens)} tokens, the model's context is {self._context}"
            )
        key = int(request.key(self.identity)[:16], 16)
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        job = _Job(tokens, request.sampling, request.score, key, done)
        self._jobs.append(job)
        self._arrived.set()
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._serve())
        return await job.done

    async def close(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.__dict__.pop("_model", None)  # the weights: whoever holds a closed backend holds no memory

    def _load(self) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise UsageError(
                f"the transformers backend needs pip install 'leaven[train]' ({error})"
            ) from error
        device = self.config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.config.path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                self.config.path, dtype=self.config.dtype, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"checkpoint {self.config.path}: {str(error).splitlines()[0]}") from error
        self._tokenizer: Any = tokenizer
        self._model = cast(Any, model)
        self._model.to(device)
        self._model.eval()
        self._context = int(
            getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        )
        reason = _sample.needs_generate(model)
        self._generate_only = bool(reason)
        if reason:
            logging.getLogger(__name__).warning("%s: %s; drawn by transformers' generate", self.model, reason)
        stop = model.generation_config.eos_token_id or tokenizer.eos_token_id
        self._stop = {stop} if isinstance(stop, int) else set(stop or ())
        self._pad = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self._stop), 0)
        )
        torch.manual_seed(self.config.seed)

    def _encode(self, request: Request) -> list[int]:
        tokens = encode(self._tokenizer, request.messages, chat=not request.score)
        if not tokens:  # nothing to go on from: as after the mark before a text
            begin = self._tokenizer.bos_token_id
            tokens = [next(iter(self._stop), 0) if begin is None else begin]
        return tokens

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # Requests of one document arrive in one turn of the loop: let them all come in first.
            await asyncio.sleep(0.001)
            jobs = self._take()
            if not jobs:
                self._arrived.clear()
                continue
            try:
                work = self._score if jobs[0].score else self._draw
                answers = await loop.run_in_executor(self._thread, work, jobs)
            except Exception as error:  # a failed batch fails its requests, not the loop
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
                continue
            for job, answer in zip(jobs, answers, strict=True):
                if not job.done.done():
                    job.done.set_result(answer)

    def _take(self) -> list[_Job]:
        """Up to `batch_size` waiting jobs that can be drawn together: the oldest, and those most like it in
        length, so that little is padded."""
        jobs = [job for job in self._jobs if not job.done.done()]
        alike = [job for job in jobs if self._alike(job) == self._alike(jobs[0])]
        alike.sort(key=lambda job: abs(len(job.tokens) - len(jobs[0].tokens)))
        batch = alike[: self.config.batch_size]
        chosen = set(map(id, batch))
        self._jobs = [job for job in jobs if id(job) not in chosen]
        return batch

    def _alike(self, job: _Job) -> tuple[Any, ...]:
        """Jobs that agree in this can share a batch."""
        if job.score:
            return (True,)
        if self._generate_only:  # one limit for all: nobody is cut short by a neighbour's long prompt
            return False, job.sampling, self._limit(job)
        return False, job.sampling.temperature, job.sampling.top_p

    def _limit(self, job: _Job) -> int:
        """Most tokens that the answer may have."""
        return min(job.sampling.max_tokens, self._context - len(job.tokens))

    def _draw(self, jobs: list[_Job]) -> list[Answer]:
        if self._generate_only:
            return self._draw_by_generate(jobs)
        rows = [
            _sample.Row(
                job.tokens,
                self._limit(job),
                job.key,
                self._ends(job.sampling.stop) if job.sampling.stop else None,
            )
            for job in jobs
        ]
        sampling = jobs[0].sampling
        completions = _sample.draw(
            self._model,
            rows,
            stop=self._stop,
            pad=self._pad,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        return [self._answer(job, tokens) for job, tokens in zip(jobs, completions, strict=True)]

    def _draw_by_generate(self, jobs: list[_Job]) -> list[Answer]:
        """One `generate` call; prompts are padded on the left to shape (batch, longest prompt)."""
        import torch

        sampling = jobs[0].sampling
        longest = max(len(job.tokens) for job in jobs)
        rows = [[self._pad] * (longest - len(job.tokens)) + job.tokens for job in jobs]
        mask = [[0] * (longest - len(job.tokens)) + [1] * len(job.tokens) for job in jobs]
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        if sampling.stop:
            options |= {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer}
        device = self._model.device
        with torch.inference_mode():
            drawn = self._model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=self._limit(jobs[0]),
                pad_token_id=self._pad,
                **options,
            )
        completions = drawn[:, longest:].tolist()
        return [self._answer(job, tokens) for job, tokens in zip(jobs, completions, strict=True)]

    def _score(self, jobs: list[_Job]) -> list[Answer]:
        """Log-probability of every token after the first, given as much before it as the context holds.

        A text longer than the context is read in windows that overlap by half, so that every token is seen
        with at least half a context before it.
        """
        scores: list[list[float]] = [[] for _ in jobs]
        step = max(1, self._context // 2)
        # (job, first token of the window, first token whose score is new)
        windows: list[tuple[int, int, int]] = []
        for number, job in enumerate(jobs):
            known = 1
            for start in range(0, max(1, len(job.tokens) - self._context + step), step):
                windows.append((number, start, known))
                known = min(len(job.tokens), start + self._context)
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        rows = max(1, _MOST_LOGITS // (vocabulary * min(self._context, max(len(job.tokens) for job in jobs))))
        for at in range(0, len(windows), rows):
            chosen = windows[at : at + rows]
            found = self._log_probabilities([jobs[n].tokens[s : s + self._context] for n, s, _ in chosen])
            for (number, start, known), row in zip(chosen, found, strict=True):
                scores[number] += row[known - start - 1 :]
        return [
            Answer(scores_to_text(found), "stop", Usage(len(job.tokens), 0, 0))
            for job, found in zip(jobs, scores, strict=True)
        ]

    def _log_probabilities(self, rows: list[list[int]]) -> list[list[float]]:
        """For every row of tokens: log p(token | those before it) from the second on."""
        import torch

        longest = max(map(len, rows))
        padded = [row + [self._pad] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        device = self._model.device
        tokens = torch.tensor(padded, device=device)
        with torch.inference_mode():
            logits = self._model(input_ids=tokens, attention_mask=torch.tensor(mask, device=device)).logits
            chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return [line[: len(row) - 1] for line, row in zip(chosen.tolist(), rows, strict=True)]

    def _answer(self, job: _Job, completion: list[int]) -> Answer:
        """Cut at the first stop token or stop string; tokens are counted up to there."""
        end = next((i for i, token in enumerate(completion) if token in self._stop), None)
        kept = completion if end is None else completion[:end]
        finish = "length" if end is None and len(completion) >= self._limit(job) else "stop"
        text = self._text(kept)
        strings = job.sampling.stop
        if _contains(text, strings):
            used = bisect_left(range(len(kept)), True, key=lambda n: _contains(self._text(kept[:n]), strings))
            kept, finish = kept[:used], "stop"
            text = text[: min(text.index(string) for string in strings if string in text)]
        return Answer(text, finish, Usage(len(job.tokens), 0, len(kept)))

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _ends(self, strings: tuple[str, ...]) -> Callable[[list[int]], bool]:
        """Whether tokens contain one of the strings, asked every `STRIDE` tokens."""
        # A token is at least a byte, so a string that became complete since the last look lies in so many.
        window = _sample.STRIDE + max(len(string.encode()) for string in strings)

        def ended(tokens: list[int]) -> bool:
            return _contains(self._text(tokens[-window:]), strings) and _contains(self._text(tokens), strings)

        return ended


def _contains(text: str, strings: tuple[str, ...]) -> bool:
    return any(string in text for string in strings)


def encode(tokenizer: Any, messages: Messages, chat: bool = True) -> list[int]:
    """Token ids of a request: by the tokenizer's chat template where it has one, else the texts joined."""
    if tokenizer.chat_template and chat:
        turns = [{"role": role, "content": content} for role, content in messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode("\n\n".join(content for _, content in messages)))


def weights_hash(folder: Path) -> str:
    """Hash of everything in a checkpoint folder that decides what the model writes.

    Raises:
        UsageError: no such folder.
    """
    import xxhash

    if not folder.is_dir():
        raise UsageError(
            f"checkpoint {folder}: no such folder (models are not downloaded; give a local path)"
        )
    digest = xxhash.xxh3_128()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
