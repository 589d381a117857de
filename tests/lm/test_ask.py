"""What a method sees of a model: prompts filled, answers completed, corrected or rejected."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from leaven.document import Document
from leaven.errors import Rejected, UsageError
from leaven.lm.ask import MOST_CONTINUATIONS, Ask, Step, StepOverride, fill, in_order, override
from leaven.lm.base import Answer, Request, Usage
from leaven.lm.structured import Malformed, parse


class Scripted:
    """Gives the listed answers, (text, finish) each, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.answers, self.asked = list(answers), list[Request]()

    async def answer(self, request: Request, priority: int = 0) -> tuple[str, Answer]:
        self.asked.append(request)
        text, finish = self.answers.pop(0)
        return f"key{len(self.asked)}", Answer(text, finish, Usage(1, 0, 7))


class Item(BaseModel):
    name: str
    sizes: list[int] = Field(min_length=1)


def make(model: Scripted, **step: Any) -> Ask:
    document = Document(text="The text.", id="d", metadata={"title": "A {braced} title"})
    steps = {"s": Step(prompt="Do {what} with {title}", **step)}
    return Ask(model, document, "method", steps, count=lambda texts: [len(text) for text in texts])


@given(st.text(), st.text())
def test_values_are_put_in_as_they_are(one: str, two: str) -> None:
    assert fill("a{one}b{two}c{other}{}", {"one": one, "two": two}) == f"a{one}b{two}c{{other}}{{}}"


def test_the_document_comes_first_and_the_variables_last() -> None:
    model = Scripted(("done", "stop"))
    asyncio.run(make(model)("s", {"what": ["x", "y"]}))
    (request,) = model.asked
    prompt = request.messages[0][1]
    assert prompt.startswith("Title: A {braced} title\n\nThe text.\n")
    assert prompt.endswith("Do - x\n- y with A {braced} title")
    assert prompt[: request.shared].endswith("-----\n\n")


def test_what_becomes_of_an_answer_that_was_cut_off() -> None:
    cut = ("half an", "length")
    kept = asyncio.run(make(Scripted(cut), on_length="keep")("s", {"what": "it"}))
    assert (kept.text, kept.finish) == ("half an", "length")
    with pytest.raises(Rejected) as error:
        asyncio.run(make(Scripted(cut), on_length="reject")("s", {"what": "it"}))
    assert (error.value.reason, error.value.raw) == ("truncated", "half an")
    model = Scripted(cut, (" answer", "length"), (" in parts", "stop"))
    whole = asyncio.run(make(model, on_length="continue")("s", {"what": "it"}))
    assert whole.text == "half an answer in parts"
    assert model.asked[2].messages[1] == ("assistant", "half an answer")
    endless = Scripted(*[cut] * (MOST_CONTINUATIONS + 1))
    with pytest.raises(Rejected, match="3 continuations"):
        asyncio.run(make(endless, on_length="continue")("s", {"what": "it"}))


def test_malformed_json_gets_one_correction_turn_with_the_error() -> None:
    model = Scripted(('{"name": "n"}', "stop"), ('{"name": "n", "sizes": [1]}', "stop"))
    reply = asyncio.run(make(model)("s", {"what": "it"}, Item))
    assert reply.value == Item(name="n", sizes=[1]) and reply.request == "key2"
    assert "sizes: Field required" in model.asked[1].messages[-1][1]
    model = Scripted(("no json", "stop"), ("still none", "stop"))
    with pytest.raises(Rejected) as error:
        asyncio.run(make(model)("s", {"what": "it"}, Item))
    assert (error.value.reason, error.value.raw, error.value.request) == (
        "invalid json",
        "still none",
        "key2",
    )


def test_a_cut_off_list_is_never_taken_for_a_whole_one() -> None:
    with pytest.raises(Rejected, match="truncated"):
        asyncio.run(make(Scripted(('{"name": "n", "sizes": [1, 2', "length")))("s", {"what": "it"}, Item))


def test_thoughts_are_no_part_of_the_text_and_nothing_is_no_text() -> None:
    reply = asyncio.run(make(Scripted(("<think>hm</think>\n It. ", "stop")))("s", {"what": "it"}))
    assert reply.text == "It."
    ask = make(Scripted(("<think>hm</think>", "stop")))
    assert asyncio.run(ask.write("s", {"what": "it"})) is None
    (row,) = ask.rejected
    assert row.metadata["reason"] == "empty answer" and row.text == "<think>hm</think>"


def test_overrides_must_use_the_same_placeholders() -> None:
    steps = {"pair": Step(prompt="About {entities}")}
    changed = override(steps, {"pair": StepOverride(prompt="{title}: {entities}", temperature=0.2)}, "x")
    assert changed["pair"].prompt == "{title}: {entities}" and changed["pair"].temperature == 0.2
    assert changed["pair"].sampling.temperature == 0.2 and steps["pair"].sampling.temperature == 1.0
    with pytest.raises(UsageError, match=r"no variable \{entity\}; did you mean 'entities'"):
        override(steps, {"pair": StepOverride(prompt="{entity}")}, "x")
    with pytest.raises(UsageError, match=r"must use \{entities\}"):
        override(steps, {"pair": StepOverride(prompt="{title}")}, "x")


def test_results_come_in_the_order_asked_and_a_failure_cancels_the_rest() -> None:
    async def late(value: int, seconds: float) -> int | None:
        await asyncio.sleep(seconds)
        if value == 9:
            raise ValueError
        return value or None

    async def collect(*work: Any) -> list[int]:
        return [item async for item in in_order(work)]

    assert asyncio.run(collect(late(1, 0.02), late(0, 0), late(2, 0))) == [1, 2]
    with pytest.raises(ValueError):
        asyncio.run(collect(late(9, 0), late(1, 60)))


items = st.builds(Item, name=st.text(), sizes=st.lists(st.integers(-9, 9), min_size=1, max_size=5))


@given(items, st.sampled_from(["{}", "```json\n{}\n```", "\n {} \n"]))
def test_any_valid_object_is_read_back(item: Item, wrapping: str) -> None:
    assert parse(wrapping.replace("{}", item.model_dump_json()), Item) == item


def test_slightly_broken_json_is_mended_and_prose_is_not_json() -> None:
    assert parse('{"name": "n", "sizes": [1, 2,],}', Item) == Item(name="n", sizes=[1, 2])
    with pytest.raises(Malformed):
        parse("I would rather not.", Item)


def test_a_raw_step_puts_nothing_around_the_text_and_takes_nothing_from_the_answer() -> None:
    model = Scripted((" <think>and</think> went on \n", "length"), (" \n", "stop"))
    document = Document(text="The bag ", id="d", metadata={"title": "A title"})
    ask = Ask(
        model, document, "m", {"s": Step(prompt="", raw=True, on_length="keep")},
        count=lambda texts: [len(text) for text in texts],
    )  # fmt: skip
    reply = asyncio.run(ask("s", {}))
    assert reply.text == " <think>and</think> went on \n"
    assert model.asked[0].messages == (("user", "The bag "),) and model.asked[0].shared == len("The bag ")
    with pytest.raises(Rejected, match="empty answer"):
        asyncio.run(ask("s", {}))
