"""The sampling loop beside transformers' own `generate` and processors, on tiny models of several kinds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from leaven.lm import _sample, transformers
from leaven.lm.base import Answer, Request, Sampling

pytestmark = pytest.mark.torch
VOCABULARY, CONTEXT = 40, 96
KINDS = ("llama", "llama-grouped", "qwen3", "gpt2", "mistral-window", "opt", "bloom", "falcon-alibi")


def model(kind: str = "llama", seed: int = 0, spread: float = 0.5) -> Any:
    """A model of random weights, large enough that scores differ well."""
    import torch
    import transformers as hf

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    llama = size | {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT, "initializer_range": spread,
    }  # fmt: skip
    few = {"num_key_value_heads": 2}
    small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "hidden_size": 32, "initializer_range": spread}
    opt = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "word_embed_proj_dim": 32,
    }
    config = {
        "llama": lambda: hf.LlamaConfig(**llama),
        "llama-grouped": lambda: hf.LlamaConfig(**llama, **few),
        "qwen3": lambda: hf.Qwen3Config(**llama, **few, head_dim=8),
        "mistral-window": lambda: hf.MistralConfig(**llama, **few, sliding_window=16),
        "gpt2": lambda: hf.GPT2Config(**size, **small, n_positions=CONTEXT),
        "opt": lambda: hf.OPTConfig(**size, **opt, max_position_embeddings=CONTEXT, init_std=spread),
        "falcon-alibi": lambda: hf.FalconConfig(**size, **opt, alibi=True, initializer_range=spread),
        "bloom": lambda: hf.BloomConfig(**size, **small),
    }[kind]()
    return hf.AutoModelForCausalLM.from_config(config).eval()


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCABULARY, length).tolist() for length in lengths]


def alone(net: Any, prompt: list[int], limit: int) -> list[int]:
    """What `generate` says greedily to one prompt without padding."""
    import torch

    tokens = torch.tensor([prompt])
    drawn = net.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=limit, do_sample=False, pad_token_id=0
    )
    return list(drawn[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_generates_token_by_token_whatever_the_padding(kind: str) -> None:
    net = model(kind)
    assert not _sample.needs_generate(net)
    asked, limits = prompts(3, 17, 1, 30, 9), [40, 7, 21, 33, 16]
    rows = [_sample.Row(prompt, limit) for prompt, limit in zip(asked, limits, strict=True)]
    found = _sample.draw(net, rows, stop=(), pad=0, temperature=0)
    assert found == [alone(net, prompt, limit) for prompt, limit in zip(asked, limits, strict=True)]
    assert len({tuple(row[:7]) for row in found}) > 1  # the rows do say different things


def test_the_cache_grows_past_its_first_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sample, "ROOM", 3)
    net = model()
    (prompt,) = prompts(1)
    assert _sample.draw(net, [_sample.Row(prompt, 60)], stop=(), pad=0, temperature=0) == [
        alone(net, prompt, 60)
    ]


def test_rows_end_at_a_stop_token_and_leave_the_others_alone() -> None:
    net = model()
    rows = [_sample.Row(prompt, 48, key) for key, prompt in enumerate(prompts(*[5, 9, 2, 14] * 8))]
    long = _sample.draw(net, rows, stop=(), pad=0)
    stop = {1, 2}
    short = _sample.draw(net, rows, stop=stop, pad=0)
    for whole, cut in zip(long, short, strict=True):
        end = next((i + 1 for i, token in enumerate(whole) if token in stop), 48)
        assert cut == whole[:end]
    assert len({len(row) for row in short}) > 5 and all(len(row) == 48 for row in long)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_row_is_the_same_alone_and_among_others_and_under_a_longer_limit(top_p: float) -> None:
    net = model()
    asked = prompts(4, 20, 11, 30, 7, 1)
    rows = [_sample.Row(prompt, 40, key) for key, prompt in enumerate(asked)]
    draw = {"stop": (3,), "pad": 0, "top_p": top_p}
    together = _sample.draw(net, rows, **draw)
    assert together == [_sample.draw(net, [row], **draw)[0] for row in rows]
    assert together[::-1] == _sample.draw(net, rows[::-1], **draw)
    for row, whole in zip(rows, together, strict=True):
        (short,) = _sample.draw(net, [_sample.Row(row.prompt, 13, row.key)], **draw)
        assert short == whole[:13]
    other = _sample.draw(net, [_sample.Row(row.prompt, 40, row.key + 100) for row in rows], **draw)
    assert all(one != two for one, two in zip(together, other, strict=True))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.05])
def test_what_is_picked_follows_the_warped_softmax(temperature: float, top_p: float) -> None:
    import torch
    from transformers import TopPLogitsWarper

    draws = 20_000
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    keys = np.random.default_rng(0).integers(0, 1 << 63, draws).astype(np.uint64)
    picked = _sample.pick(
        logits.expand(draws, -1),
        lambda attempt: torch.from_numpy(_sample.uniforms(keys, 5, attempt)),
        temperature,
        top_p,
    )
    warped = logits / temperature
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    expected = warped.softmax(-1)[0].double().numpy() * draws
    counts = np.bincount(picked.numpy(), minlength=VOCABULARY)
    assert not counts[expected == 0].any()
    common = expected >= 5  # rarer tokens are counted together, as the test demands
    groups = [
        (counts[common], expected[common]),
        (counts[~common].sum(keepdims=True), expected[~common].sum(keepdims=True)),
    ]
    seen, hoped = (np.concatenate(each) for each in zip(*groups, strict=True))
    seen, hoped = seen[hoped > 0], hoped[hoped > 0]
    if len(seen) > 1:
        assert stats.chisquare(seen, hoped * seen.sum() / hoped.sum(), sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("coarse", [False, True], ids=["float32", "ties of bfloat16"])
@pytest.mark.parametrize("top_p", [0.999, 0.9, 0.5, 0.1, 0.001])
def test_the_nucleus_is_what_transformers_keeps(top_p: float, coarse: bool) -> None:
    import torch
    from transformers import TopPLogitsWarper

    scores = torch.randn(64, 200, generator=torch.Generator().manual_seed(2)) * 3
    if coarse:
        scores = scores.bfloat16().float()
        assert any(len(row.unique()) < 200 for row in scores)
    kept = torch.isfinite(TopPLogitsWarper(top_p)(None, scores))
    mass = scores.softmax(-1)
    tokens = [torch.full((64,), token) for token in range(200)]
    above = torch.stack([(mass * _sample.ranked_above(scores, token)).sum(-1) for token in tokens], 1)
    clear = (above - top_p).abs() > 1e-6  # nearer than that, rounding decides
    tied = torch.stack([(scores == scores.gather(1, token[:, None])).sum(-1) > 1 for token in tokens], 1)
    assert torch.equal((above < top_p)[clear & ~tied], kept[clear & ~tied])
    assert clear.float().mean() > 0.99
    # Which of several equal tokens transformers keeps depends on how torch sorts; how many does not.
    sure = clear.all(-1)
    assert torch.equal((above < top_p).sum(-1)[sure], kept.sum(-1)[sure]) and sure.any()


def test_a_token_without_mass_is_never_picked() -> None:
    import torch

    ends = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    edges = torch.tensor([0.0, 1.0])  # one is outside [0, 1): a product that was rounded up
    assert _sample.pick(ends, lambda _: edges, 1.0, 1.0).tolist() == [1, 2]


def test_random_numbers_are_uniform_and_their_places_independent() -> None:
    keys = np.arange(500, dtype=np.uint64)
    numbers = np.stack(
        [[_sample.uniforms(keys, step, attempt) for step in range(40)] for attempt in range(2)]
    )
    assert numbers.min() >= 0 and numbers.max() < 1 and len(np.unique(numbers)) > 0.99 * numbers.size
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for axis in range(3):
        one, two = (
            np.take(numbers, range(*cut), axis).ravel()
            for cut in ((1, numbers.shape[axis]), (0, numbers.shape[axis] - 1))
        )
        assert stats.pearsonr(one, two).pvalue > 1e-3


def test_a_model_that_needs_more_is_left_to_generate() -> None:
    import transformers as hf

    net = model()
    net.generation_config.repetition_penalty = 1.2
    assert "repetition_penalty" in _sample.needs_generate(net)
    mamba = hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert _sample.needs_generate(hf.AutoModelForCausalLM.from_config(mamba))


# ---------------------------------------------------------------------------- through the backend


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose 26 letters and marks are a token each, and which likes to end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz .,;:!?01234", "<|end|>", "~"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="~"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    assert len(fast) == VOCABULARY
    net = model()
    net.generation_config.eos_token_id = net.config.eos_token_id = fast.eos_token_id
    folder = tmp_path_factory.mktemp("letters")
    net.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def ask(folder: Path, texts: list[str], batch: int = 64, seed: int = 0, **sampling: Any) -> list[Answer]:
    async def work() -> list[Answer]:
        backend = transformers.Config(
            path=folder, dtype="float32", device="cpu", batch_size=batch, seed=seed
        ).open()
        try:
            requests = (Request((("user", text),), Sampling(**sampling)) for text in texts)
            return list(await asyncio.gather(*map(backend.generate, requests)))
        finally:
            await backend.close()

    return asyncio.run(work())


TEXTS = ["a", "hello", "what now?", "a longer text, not a short one", *(f"{i}" * i for i in (1, 2, 3))]


def test_an_answer_depends_on_its_request_only(checkpoint: Path) -> None:
    together = ask(checkpoint, TEXTS, max_tokens=24)
    assert together == ask(checkpoint, TEXTS, max_tokens=24)
    assert together == ask(checkpoint, TEXTS, batch=2, max_tokens=24)
    assert together[::-1] == ask(checkpoint, TEXTS[::-1], batch=3, max_tokens=24)
    assert together != ask(checkpoint, TEXTS, seed=1, max_tokens=24)
    for short, long in zip(ask(checkpoint, TEXTS, max_tokens=10), together, strict=True):
        assert long.text.startswith(short.text)


def test_finish_and_usage_say_how_an_answer_ended(checkpoint: Path) -> None:
    free = ask(checkpoint, TEXTS, max_tokens=30)
    assert {answer.finish for answer in free} == {"stop", "length"}
    for answer in free:
        assert answer.usage.completion == len(answer.text)  # a letter is a token
        assert (answer.finish == "length") == (answer.usage.completion == 30)
    stops = ("a", "b", free[0].text[3:6])
    for whole, cut in zip(free, ask(checkpoint, TEXTS, max_tokens=30, stop=stops), strict=True):
        # Other strings are another request, and another draw: compare with what this one wrote.
        assert not any(string in cut.text for string in stops)
        if cut.finish == "stop" and cut.usage.completion > len(cut.text):
            assert cut.usage.completion - len(cut.text) in {len(string) for string in stops}
        assert whole.usage.prompt == cut.usage.prompt


def test_a_stop_string_cuts_what_would_have_been_said(checkpoint: Path) -> None:
    (whole,) = ask(checkpoint, TEXTS[1:2], temperature=0, max_tokens=40)
    string = whole.text[10:13]
    (cut,) = ask(checkpoint, TEXTS[1:2], temperature=0, max_tokens=40, stop=(string, "~~~~~~~~~~~~"))
    at = whole.text.index(string)
    assert (cut.text, cut.finish, cut.usage.completion) == (whole.text[:at], "stop", at + len(string))


def test_a_prompt_may_fill_the_context_but_for_one_token(checkpoint: Path) -> None:
    full, half = ask(checkpoint, ["x" * (CONTEXT - 1), "x" * 20], temperature=0, max_tokens=30)
    assert full.usage.completion <= 1 and full.usage.prompt == CONTEXT - 1
    assert half.usage.completion > 1 or half.finish == "stop"


def test_generate_serves_what_the_loop_cannot(checkpoint: Path, tmp_path: Path, caplog: Any) -> None:
    import shutil

    from transformers import GenerationConfig

    folder = tmp_path / "penalised"
    shutil.copytree(checkpoint, folder)
    same = GenerationConfig.from_pretrained(folder)
    same.no_repeat_ngram_size = 2
    same.save_pretrained(folder)
    answers = ask(folder, TEXTS, temperature=0, max_tokens=30)
    assert "no_repeat_ngram_size" in caplog.text
    for answer in answers:
        pairs = [answer.text[i : i + 2] for i in range(len(answer.text) - 1)]
        assert len(pairs) == len(set(pairs))
    assert answers != ask(checkpoint, TEXTS, temperature=0, max_tokens=30)
