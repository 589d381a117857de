"""Train a tiny chat model on the recorded answers, to try the real path with no download and no key.

    .venv/bin/python examples/tiny_model.py tiny --minutes 5
    HF_HUB_OFFLINE=1 .venv/bin/transformers serve tiny --device cpu --dtype float32 --port 8000

It learns from 8 story openings to answer each of Leaven's prompts with text of the right form, and its
answers are as poor as 2.5 million parameters make them. It is there to run every part for real: a
checkpoint, a server, JSON that sometimes is none, answers that run into their limit.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from leaven.document import Document
from leaven.generate import load_method
from leaven.lm.ask import fill, head

STORIES = Path(__file__).parent / "stories"
LENGTH = 768  # tokens of one training sequence
WORDS = 60  # of a document in a training prompt: the model need not read, only answer in form
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def samples() -> list[tuple[str, str]]:
    """(prompt, answer) for every recorded answer to a prompt of Leaven's own methods."""
    documents = {row["id"]: row for row in map(json.loads, (STORIES / "documents.jsonl").open())}
    found = []
    for row in map(json.loads, (STORIES / "answers.jsonl").open()):
        if row["method"] not in ("rephrase", "mga", "entigraph"):
            continue
        words = documents[row["doc_id"]]["text"].split()
        start = random.randrange(max(1, len(words) - WORDS))
        text = " ".join(words[start : start + WORDS])
        document = Document(
            text=text, id=row["doc_id"], metadata={"title": documents[row["doc_id"]]["title"]}
        )
        variables = {
            "title": document.metadata["title"],
            "pairs": 5,
            "genre": "an essay",
            "audience": "adults",
        }
        variables |= row["variables"] | {"text": "A short text about the same."}
        prompt = head(document) + fill(load_method(row["method"]).steps[row["step"]].prompt, variables)
        found.append((prompt, row["response"]))
    return found


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the chat template's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )


def batch_of(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of shape (batch, longest); labels cover the answer only (-100 elsewhere)."""
    rows, labels = [], []
    for prompt, answer in pairs:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        before = tokenizer.encode(text, add_special_tokens=False)
        after = tokenizer.encode(answer + "<|end|>", add_special_tokens=False)
        rows.append((before + after)[:LENGTH])
        labels.append(([-100] * len(before) + after)[:LENGTH])
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([row + [-100] * (longest - len(row)) for row in labels])


def train(folder: Path, minutes: float, seed: int) -> None:
    """Train until the time is up and save model and tokenizer."""
    random.seed(seed)
    torch.manual_seed(seed)
    pairs = samples()
    tokenizer = train_tokenizer([text for pair in pairs for text in pair])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=160, intermediate_size=448, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=8192, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {len(pairs)} samples")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    end, step = time.monotonic() + 60 * minutes, 0
    started = time.monotonic()
    while (left := end - time.monotonic()) > 0:
        if step % (len(pairs) // 8) == 0:
            pairs = samples()  # another excerpt of every document
            random.shuffle(pairs)
        at = 8 * step % (len(pairs) - 8)
        ids, labels = batch_of(tokenizer, pairs[at : at + 8])
        progress = 1 - left / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, max(0.05, 2 * (1 - progress)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {time.monotonic() - started:.0f} s, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"saved {folder} after {step} steps, loss {loss.item():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.minutes, arguments.seed)
