"""Filters that look at nothing but the text: wrapping words of a chat model, length, repetition.

    "Sure, here is the rewritten text:\\n\\nThe lamp ...\\n\\nI hope this helps!"  ->  "The lamp ..."
    "I'm sorry, but I cannot help with that request."                           ->  rejected

The pattern lists are our own. Paper 000 (MGA, 3.2) filters "high-frequency generative patterns" without
listing them. A pattern must match a whole line at the very beginning or end of the text, or name the task
itself, so that a story that opens with "Sure," or a letter that says "Let me know" in its middle is left
alone.
"""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from leaven.clean.base import Filter, Options, Place, Sources, Verdict
from leaven.corpus.shingles import repeated
from leaven.document import Document

_AGREEMENT = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|gladly|understood|no problem|"
    r"with pleasure|great question|good question|happy to help|"
    r"i(?:'d| would) be (?:happy|glad|delighted) to (?:help|assist)[^.!\n]{0,80})"
)
_TASK = (
    r"(?:rewritten|rewrite|rewriting|rephras\w+|paraphras\w+|reformulat\w+|reworked|as requested|"
    r"you (?:asked|requested)|version(?: of the (?:text|passage|story|document|article|original)\b| for\b|"
    r" in\b| that\b| written\b|(?=:))|"
    r"(?:adapted|revised|summari[sz]ed|translated) (?:text|version|passage|story)|"
    r"(?:question|q&a)(?: and|-)? ?answer pairs?)"
)
_HERE = r"(?:here(?:'s| is| are)|below(?: is| are|'s)|the following(?: is| are))"
_LINE_END = r"[ \t]*(?:\*\*)?[ \t]*(?=\n|\Z)"
# What a text may begin with, most wordy first; tried again until nothing more comes off.
_OPENINGS = (
    # "Certainly! Here's a short story:" and "Here is the rewritten text:" alone on a line
    rf"{_AGREEMENT}\s*[!.,:—-]+\s*{_HERE}[^\n]{{0,200}}?[:.]{_LINE_END}",
    rf"{_HERE} (?:a|an|the|your|my|one|some)\b[^\n]{{0,120}}?\b{_TASK}\b[^\n]{{0,80}}?:{_LINE_END}",
    # "Certainly!" alone on a line
    rf"{_AGREEMENT}\s*[!:]+{_LINE_END}",
    rf"(?:\*\*|#+ *)?(?:rewritten|rephrased|paraphrased|reformulated|revised) (?:text|version|passage)"
    rf"(?:\*\*)?:?{_LINE_END}",
)  # fmt: skip
_END = r"[^\n\"“”]{0,160}\Z"
_CLOSINGS = (
    rf"i(?: sincerely| really)? hope (?:this|that|these|it)\b[^\n\"“”]{{0,40}}"
    rf"\b(?:helps?|helpful|useful|meets your|what you)\b{_END}",
    rf"(?:please )?let me know if (?:you|there|this|i can|any)\b{_END}",
    rf"(?:please )?(?:feel free|don't hesitate|do not hesitate) to (?:ask|let me know|reach out)\b{_END}",
    rf"(?:is there anything else|would you like me to|do you want me to|shall i (?:go on|continue))\b{_END}",
    rf"if you(?:'d like|'d prefer| would like| want| need| have)\b[^\n\"“”]{{0,120}}"
    rf"\b(?:let me know|feel free|just ask|i can (?:also )?(?:help|provide|adjust|write|revise))\b{_END}",
    rf"\(?note:? (?:that )?(?:this|the|i(?:'ve| have)?) [^\n\"“”]{{0,60}}\b{_TASK}\b{_END}",
)  # fmt: skip
_AI = r"as an? (?:ai|artificial intelligence|large language model|language model)\b[^.\n]{0,30}?,? i\b"
_CANNOT = r"(?:can(?:'t|not| not)|am (?:unable|not able) to|'m (?:unable|not able) to|won't|will not)"
_DO = (
    r"(?:assist|comply|fulfil+|provide|generate|rewrite|rephrase|complete|continue|process|answer|"
    r"help (?:you )?with)"
)
_REFUSALS = (
    rf"(?:i'm sorry|i am sorry|i apologi[sz]e|sorry|unfortunately|my apologies)\b[^\n.\"“”]{{0,30}}\b"
    rf"(?:i {_CANNOT}|i{_CANNOT})\s[^.\n]{{0,20}}\b(?:{_DO}|help|write|create|produce|do that)\b",
    rf"(?:i {_CANNOT}|i{_CANNOT})\s{_DO}\b[^.\n]{{0,60}}"
    r"\b(?:request|prompt|your|(?:this|that) (?:text|content|passage|document|information|material))\b",
    _AI,
    r"(?:it (?:seems|looks like|appears)|i (?:notice|see)|there (?:is|was|seems to be))\b[^.\n]{0,40}"
    r"\bno (?:text|document|passage|content|input)\b[^.\n]{0,40}"
    r"\b(?:provided|given|attached|included|above)\b",
    r"(?:please|could you(?: please)?|can you(?: please)?) (?:provide|share|paste|send)\b[^.\n]{0,30}"
    r"\b(?:text|document|passage|content)\b[^.\n]{0,60}\b(?:you|rewrite|rephrase|work|want|above)\b",
)  # fmt: skip


def _any_of(patterns: tuple[str, ...], start: str) -> re.Pattern[str]:
    return re.compile(start + "(?:" + "|".join(f"(?:{p})" for p in patterns) + ")", re.IGNORECASE)


_OPENING = _any_of(_OPENINGS, r"\A[\s*_>]*")
_CLOSING = _any_of(_CLOSINGS, r"(?:(?:\n|\A)[\s*_>(\[]*)")
_REFUSAL = _any_of(_REFUSALS, r"\A[\s*_>]*")
_RULE = r"[-*_=]{3,}[ \t]*"  # a horizontal rule that parted the wrapping from the text


def _trimmed(text: str) -> str:
    text = re.sub(rf"\A{_RULE}(?:\n|\Z)", "", text.strip())
    return re.sub(rf"(?:\n|\A)[ \t]*{_RULE}\Z", "", text).strip()


def _straight(text: str) -> str:
    """Typographic apostrophes as plain ones, every character in its place."""
    return text.replace("’", "'")  # noqa: RUF001


class Boilerplate(Filter):
    """Takes a chat model's wrapping off the text; rejects refusals and texts that are nothing else."""

    name = "boilerplate"

    class Config(Options):
        """Options of `boilerplate`.

        Args:
            lines: further lines to take off the beginning and the end, in any case of letters.
        """

        lines: tuple[str, ...] = ()

    config: Config

    def __init__(self, config: Boilerplate.Config | None = None) -> None:
        super().__init__(config)
        own = tuple(re.escape(line.strip()) for line in self.config.lines if line.strip())
        self._own = (
            _any_of(own, r"\A[ \t]*"),
            re.compile(rf"(?:\n|\A)[ \t]*(?:{'|'.join(own)})\s*\Z", re.I),
        ) if own else ()  # fmt: skip

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        text, removed = self.strip(document.text)
        edited = text if removed else None
        facts = {"removed": removed} if removed else {}
        if refusal := _REFUSAL.match(_straight(text)):
            return Verdict(False, len(removed), f"refusal: {refusal.group().strip()!r}", edited, facts)
        if not any(c.isalnum() for c in text):
            return Verdict(False, len(removed), "nothing but boilerplate", None, facts)
        return Verdict(True, len(removed), text=edited, facts=facts)

    def strip(self, text: str) -> tuple[str, list[str]]:
        """The text without its wrapping, and what was taken off, in the order of taking."""
        removed: list[str] = []
        while found := self._find(text):
            start, end = found
            removed.append(text[start:end].strip())
            text = _trimmed(text[end:] if start == 0 else text[:start])
        return text, removed

    def _find(self, text: str) -> tuple[int, int] | None:
        straight = _straight(text)
        for opening in (_OPENING, *self._own[:1]):
            if (match := opening.match(straight)) and match.end() > 0:
                return 0, match.end()
        for closing in (_CLOSING, *self._own[1:]):
            if match := closing.search(straight, max(0, len(text) - 500)):
                return match.start(), len(text)
        return None


class Length(Filter):
    """Rejects texts with too few or too many words."""

    name = "length"

    class Config(Options):
        """Options of `length`.

        Args:
            min_words: fewest words kept. 50 and 100,000 are the limits of Gopher (Rae et al. 2021, table A1);
                Nemotron-CC's rephrasers likewise drop outputs under 50 tokens.
            max_words: most words kept.
        """

        min_words: int = Field(50, ge=0)
        max_words: int = Field(100_000, ge=1)

        @model_validator(mode="after")
        def _in_order(self) -> Length.Config:
            if self.min_words > self.max_words:
                raise ValueError(f"min_words {self.min_words} is greater than max_words {self.max_words}")
            return self

    config: Config

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        count, least, most = len(document.text.split()), self.config.min_words, self.config.max_words
        if least <= count <= most:
            return Verdict(True, count)
        return Verdict(False, count, f"{count} words; kept are {least} to {most}")


class LengthRatio(Filter):
    """Rejects texts much shorter or longer than what they were written from."""

    name = "length_ratio"

    class Config(Options):
        """Options of `length_ratio`, in words of the text over words of its sources together.

        Args:
            min_ratio: least ratio kept; our own choice, so low that one of EntiGraph's discussions of two
                entities passes beside a source of some 10,000 words.
            max_ratio: greatest ratio kept; our own choice: more than four times its source is mostly
                invented.
        """

        min_ratio: float = Field(0.02, ge=0)
        max_ratio: float = Field(4.0, gt=0)

    config: Config

    def open(self, sources: Sources) -> None:
        self.sources = sources

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        words = sum(len(source.text.split()) for source in self.sources.of(document))
        if not words:
            return Verdict(True, None)
        ratio = round(len(document.text.split()) / words, 4)
        if self.config.min_ratio <= ratio <= self.config.max_ratio:
            return Verdict(True, ratio)
        limits = f"{self.config.min_ratio:g} to {self.config.max_ratio:g}"
        return Verdict(False, ratio, f"{ratio:g} times its sources' words; kept are {limits}")


class Repetition(Filter):
    """Rejects texts in which a long run of words occurs twice: a sample that has begun to loop."""

    name = "repetition"

    class Config(Options):
        """Options of `repetition`.

        Args:
            n: words in a run; 13 in paper 003 (SBP, appendix B.2), there SentencePiece tokens, here words in
                lower case without punctuation and digits.
            max_repeated: how many different runs may occur more than once; none in the paper.
        """

        n: int = Field(13, ge=2)
        max_repeated: int = Field(0, ge=0)

    config: Config

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        count = repeated(document.text, self.config.n)
        if count <= self.config.max_repeated:
            return Verdict(True, count)
        return Verdict(False, count, f"{count} runs of {self.config.n} words occur more than once")
