"""Rows of prompts and answers: as they are written in JSONL, checked, and as token ids with labels.

What a model is taught is what it will be asked: a prompt is encoded as `leaven.lm.transformers` encodes a request
(through the chat template where the tokenizer has one, as joined text where it has none). The answer is encoded on
its own and put after it, so that no token spans the two. Labels are on the answer and its end mark only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaven.document import to_json
from leaven.errors import Rejected, UsageError, nearest
from leaven.lm.base import Messages
from leaven.lm.transformers import encode

ROLES = ("system", "user", "assistant", "tool")
IGNORED = -100  # label of a token that no loss is taken of

# For tokenizers without one: plain text, so that no new tokens are needed. The end mark closes every answer.
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[' ~ message['role'] ~ ']\\n' ~ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation that ends with the assistant's answer.

    Args:
        chat: it was given as messages, so the model is to be a chat model.
        where: its place, for errors.
    """

    messages: Messages
    chat: bool
    where: str


def read_rows(path: Path | None) -> list[Row]:
    """Rows of a JSONL file.

    Raises:
        UsageError: no file, or a line that is no row; the line is named.
    """
    if path is None:
        raise UsageError("finetune: give 'path', a JSONL file of prompts and completions or of messages")
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}:{number}"
                    try:
                        value = json.loads(line)
                    except ValueError as error:
                        raise UsageError(f"{where}: not JSON: {error}") from error
                    rows.append(row_of(value, where))
    except OSError as error:
        raise UsageError(f"finetune: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"finetune: {path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    return rows


def row_of(value: Any, where: str) -> Row:
    """A row as it was written, checked.

    Raises:
        UsageError: it is neither kind of row.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: a row must be an object with prompt and completion, or with messages")
    if ("messages" in value) == ("prompt" in value or "completion" in value):
        raise UsageError(f"{where}: a row must have either prompt and completion, or messages")
    if "messages" in value:
        return Row(_messages(value["messages"], where), True, where)
    for name in ("prompt", "completion"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            raise UsageError(f"{where}: {name} must be a text that is not empty, not {value.get(name)!r:.60}")
    return Row((("user", value["prompt"]), ("assistant", value["completion"])), False, where)


def _messages(value: Any, where: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: messages must be a list of objects with role and content")
    found: list[tuple[str, str]] = []
    for number, one in enumerate(value, 1):
        role, content = (one.get("role"), one.get("content")) if isinstance(one, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UsageError(f"{where}: message {number} must be an object with role and content, both texts")
        if role not in ROLES:
            raise UsageError(f"{where}: message {number}: unknown role {role!r}; {nearest(role, ROLES)}")
        found.append((role, content))
    if found[0][0] == "assistant" or found[-1][0] != "assistant" or not found[-1][1].strip():
        raise UsageError(f"{where}: messages must begin with a question and end with the assistant's answer")
    return tuple(found)


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """Changes with what is trained on."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(to_json([row.messages, row.chat]))
    return digest.hexdigest()


class Encoder:
    """Rows as token ids, with labels on the answers.

    Args:
        checkpoint: whose tokenizer is used.
        model: knows, beside the tokenizer, which tokens end an answer.
        chat: give the tokenizer a chat template if it has none.

    Raises:
        UsageError: no tokenizer, one without an end mark, or one that is larger than the model.
    """

    def __init__(self, checkpoint: Path, model: Any, chat: bool) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"finetune: checkpoint {checkpoint}: {str(error).splitlines()[0]}") from error
        self.end: int | None = self.tokenizer.eos_token_id
        if self.end is None:
            raise UsageError(
                f"finetune: the tokenizer of {checkpoint} has no end mark (eos_token), so the model could not learn "
                "where an answer ends; set one in its tokenizer_config.json"
            )
        known = model.get_input_embeddings().weight.shape[0]
        if len(self.tokenizer) > known:
            raise UsageError(
                f"finetune: the tokenizer of {checkpoint} has {len(self.tokenizer):,} tokens, its model {known:,}"
            )
        stop = model.generation_config.eos_token_id
        self._stop = {self.end, *([stop] if isinstance(stop, int) else stop or ())}
        if chat and not self.tokenizer.chat_template:
            begins = self.tokenizer.encode("a")[:1] == [self.tokenizer.bos_token_id]
            self.tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + TEMPLATE

    def prompt(self, messages: Messages) -> list[int]:
        """Token ids of a request, as the backend that will be asked encodes it."""
        return encode(self.tokenizer, messages)

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        """(token ids, labels) of one row.

        Raises:
            Rejected: the chat template shows earlier turns otherwise once later ones follow, or the text holds half
                a character.
            UsageError: the chat template refuses the row.
        """
        try:
            "".join(content for _, content in row.messages).encode()
        except UnicodeEncodeError as error:
            raise Rejected("broken text", "it holds half a surrogate pair") from error
        ids: list[int] = []
        labels: list[int] = []
        for asked, answer in self._turns(row):
            learnt = next((i + 1 for i, token in enumerate(answer) if token in self._stop), len(answer))
            ids += asked + answer
            labels += [IGNORED] * len(asked) + answer[:learnt] + [IGNORED] * (len(answer) - learnt)
        if self._stop.isdisjoint(answer):  # a template that leaves the end to the server
            assert self.end is not None
            ids.append(self.end)
            labels.append(self.end)
        return ids, labels

    def _turns(self, row: Row) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids of what comes before each answer (after the one before), and of the answer."""
        if not self.tokenizer.chat_template:
            (*before, (_, answer)) = row.messages
            yield self.prompt(tuple(before)), self._ids(answer)
            return
        done = ""
        for number, (role, _) in enumerate(row.messages):
            if role != "assistant":
                continue
            try:
                asked = self._render(row.messages[:number], asked=True)
                answered = self._render(row.messages[: number + 1], asked=False)
            except Exception as error:  # templates raise what they like
                line = " ".join(str(error).split())
                raise UsageError(f"{row.where}: the tokenizer's chat template refuses it: {line}") from error
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise Rejected("chat template", "it shows earlier turns otherwise once later ones follow")
            yield self._ids(asked[len(done) :]), self._ids(answered[len(asked) :])
            done = answered

    def _render(self, messages: Messages, asked: bool) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=asked, tokenize=False))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))
