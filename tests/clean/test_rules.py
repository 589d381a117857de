"""Boilerplate, length, length ratio and repetition: what goes, and what must not be harmed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.clean.base import Sources
from leaven.clean.rules import Boilerplate, Length, LengthRatio, Repetition
from leaven.document import Document

BODY = "The keeper lit the lamp at nine. Nobody came.\n\n“I hope this helps,” she had said once."


def document(text: str) -> Document:
    return Document(text=text, id="d")


@pytest.mark.parametrize(
    "opening",
    [
        "Sure, here is the rewritten text:\n\n",
        "Sure! Here's a version for children aged 8 to 10:\n\n",
        "Certainly!\n\n",
        "**Certainly! Here is the story:**\n",
        "Of course. Here are the question and answer pairs you asked for:\n",
        "Here is a paraphrased version of the passage:\n\n",
        "Here’s the rewritten passage, as requested:\n\n---\n\n",  # noqa: RUF001
        "I'd be happy to help with that! Here is your text:\n\n",
        "Great question! \n",
        "## Rewritten text\n\n",
    ],
)
@pytest.mark.parametrize(
    "closing",
    [
        "",
        "\n\nI hope this helps!",
        "\n\nI hope this version is helpful for your readers.",
        "\n\n---\n\nLet me know if you would like any changes.",
        "\nFeel free to ask if anything is unclear!",
        "\n\nWould you like me to write another one?",
        "\n\nIf you need a shorter version, let me know.",
        "\n\n(Note: I have rewritten the passage in simple words.)",
        "\n\nI hope this helps! Let me know if you have any questions.",
    ],
)
def test_wrapping_comes_off_and_is_recorded(opening: str, closing: str) -> None:
    row = document(opening + BODY + closing)
    assert Boilerplate().filter(row) is True
    assert row.text == BODY
    check = row.metadata["checks"]["boilerplate"]
    assert check["keep"] and check["edited"] and check["value"] == len(check["removed"]) >= 1
    assert all(removed in opening + closing for removed in check["removed"])


@pytest.mark.parametrize(
    "text",
    [
        "Sure, he knew the reef. Everybody on the island did.\nHe said nothing.",
        "Sure. That was all he said.\n\nThe boat left.",
        "Of course, I have never seen the place again.",
        "Here is the house: two floors, no light.\nAnd here is the key.",
        "Here are the rules of the harbour:\n1. Ships wait.",
        "Certainly the wind had turned by then.",
        "Okay so nobody tells you this about rockets.",
        "She wrote: let me know if you need oil.\nHe did not answer.",
        "The letter ended so:\n“Let me know if you are coming.”",
        "Dear Ann,\n\nPlease let me know if you need oil.\n\nYours, Bob",
        "I am sorry to say that I cannot remember the name of the ship. It was long ago.",
        "I cannot help thinking that this text of hers was a joke.",
        "“I'm sorry, but I can't help with that request,” said the robot. Bob laughed.",
        "As an AI researcher, Ada knew the smell of hot metal. I met her in May.",
        "Unfortunately the pump broke. I can not say why.",
        "It seems there was no one on board. The text on the hull was gone.",
        "Note: the valve opens to the left.",
        "Here is the output of the command:\n\n$ ls",
        "Here is a list of the books written by Verne:\n- one",
        "Below is the version history:\n- 1.0",
        "Okay.\n\nI walked on.",
    ],
)
def test_real_prose_is_left_alone(text: str) -> None:
    row = document(text)
    assert Boilerplate().filter(row) is True and row.text == text
    assert row.metadata["checks"] == {"boilerplate": {"value": 0, "keep": True}}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that request.",
        "I’m sorry, but as an AI language model I cannot rewrite this text.",  # noqa: RUF001
        "Sorry, I am unable to continue this story.",
        "I cannot fulfill this request. It asks for private data.",
        "I can't assist with that content.",
        "As an AI language model, I don't have feelings about ships.",
        "Certainly! As an AI, I can only give you an outline.\n\nShips float.".replace("! ", "!\n"),
        "It seems that no text was provided. Please paste it.",
        "Please provide the text you would like me to rewrite.",
        "Sure, here is the rewritten text:",
        "Certainly!\n\nI hope this helps!",
        "  \n ---",
    ],
)
def test_refusals_and_texts_of_nothing_else_are_rejected(text: str) -> None:
    row = document(text)
    assert Boilerplate().filter(row) == (False, "boilerplate")
    assert row.metadata["checks"]["boilerplate"]["keep"] is False


def test_own_lines() -> None:
    config = Boilerplate.Config(lines=("[END OF TEXT]", "Text (B1):"))
    row = document(f"text (b1):\n{BODY}\n[end of text]\n")
    assert Boilerplate(config).filter(row) is True and row.text == BODY
    assert Boilerplate(config).filter(inside := document("See Text (B1): it ends.")) is True
    assert inside.text == "See Text (B1): it ends."


@given(st.text(alphabet="Sure,! \n-heris a:txAI'", max_size=80))
def test_stripping_ends_and_is_settled(text: str) -> None:
    stripped, removed = Boilerplate().strip(text)
    assert Boilerplate().strip(stripped) == (stripped, [])
    assert bool(removed) == (stripped != text)


@pytest.mark.parametrize(("words", "keep"), [(4, False), (5, True), (9, True), (10, False)])
def test_length(words: int, keep: bool) -> None:
    found = Length(Length.Config(min_words=5, max_words=9)).check(document("word " * words))
    assert (found.keep, found.value) == (keep, words)
    assert bool(found.detail) != keep


def test_length_ratio(sources: Sources, of_source: Callable[[str], Document]) -> None:
    one = LengthRatio(LengthRatio.Config(min_ratio=0.1, max_ratio=2))
    one.open(sources)
    source = next(iter(sources)).text
    assert one.check(of_source(source)).value == 1.0
    assert one.check(of_source(source)).keep
    assert not one.check(of_source(source * 3)).keep
    assert not one.check(of_source("Too short.")).keep
    orphan = one.check(Document(text="from nothing", id="x", metadata={"sources": []}))
    assert orphan.keep and orphan.value is None


def test_repetition(children: list[Document]) -> None:
    text = children[0].text
    assert Repetition().check(document(text)).keep
    loop = "and the rock grew larger and larger in the plates of the old ship, "
    found = Repetition().check(document(text + loop * 3))
    assert not found.keep and found.value >= 10
    assert Repetition(Repetition.Config(max_repeated=100)).check(document(text + loop * 3)).keep
