"""Filters of datatrove by name: Gopher's quality and repetition rules, and C4's.

The rules and their figures are datatrove's; what is ours is the splitter. datatrove splits English with
spaCy's rule-based tokenizer, which needs no model and no download, only the package (``splitter: spacy``).
The default ``splitter: simple`` gives datatrove's own filters the words between white space, and sentences
by one regular expression: it needs nothing and is 4 to 35 times faster. It also judges dialogue better: spaCy
counts every quotation mark and comma as a word, so that the rule "80 % of words hold a letter" rejects 31 of
the 40 recorded faithful reformulations of the example stories; between white space it rejects none.

C4's rules drop lines, not only documents: the edited text is kept, as in datatrove. They were made for web
pages; a list, a table or a heading has no final stop and goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from leaven.clean.base import Filter, Options, Place, Sources, Verdict
from leaven.document import Document
from leaven.errors import UsageError

_SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"'”’)\]]*(?=\s|\Z)|$)", re.MULTILINE)  # noqa: RUF001
_OWN = ("splitter",)


class BorrowedOptions(Options):
    """Options of all borrowed filters.

    Args:
        splitter: ``simple`` (white space) or ``spacy`` (datatrove's own; needs ``pip install spacy``).
    """

    splitter: Literal["simple", "spacy"] = "simple"


def _splitter() -> Any:
    """A datatrove word tokenizer that splits at white space, and sentences at stops and line ends."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Simple(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end].strip() for start, end in self.span_tokenize(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in _SENTENCE.finditer(text)]

    return Simple()


class Borrowed(Filter):
    """A datatrove filter, made when first used with the options of `Config`."""

    config: BorrowedOptions

    def __init__(self, config: BorrowedOptions | None = None) -> None:
        super().__init__(config)
        if self.config.splitter == "spacy" and find_spec("spacy") is None:
            raise UsageError(
                f"{self.name}: splitter 'spacy' needs spaCy: pip install spacy (no model is downloaded), "
                "or leave out 'splitter' for the simple one"
            )
        self._judge: Callable[[Document], bool | tuple[bool, str]] | None = None

    def _make(self, **options: Any) -> Any:
        """The datatrove filter, with its own name for each option."""
        raise NotImplementedError

    def open(self, sources: Sources | None = None) -> None:
        options = self.config.model_dump(exclude=set(_OWN))
        if self.config.splitter == "simple":
            options["language"] = _splitter()
        try:
            self._judge = self._make(**options).filter
        except ImportError as error:
            raise UsageError(
                f"{self.name}: datatrove needs more packages: {' '.join(str(error).split())}"
            ) from error

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        if self._judge is None:
            self.open()
        assert self._judge is not None
        copy = Document(text=document.text, id=document.id)
        result = self._judge(copy) if document.text.strip() else (False, "empty")
        keep, reason = result if isinstance(result, tuple) else (result, "")
        if keep and copy.text != document.text:
            facts = {"characters_removed": len(document.text) - len(copy.text)}
            return Verdict(True, "passed", text=copy.text, facts=facts)
        return Verdict(bool(keep), "passed" if keep else reason, reason)


class GopherQuality(Borrowed):
    """Gopher's quality rules (Rae et al. 2021, appendix A.1.1)."""

    name = "gopher_quality"

    class Config(BorrowedOptions):
        """Options of `gopher_quality`: datatrove's names and the paper's figures; None turns a rule off.

        Args:
            min_doc_words, max_doc_words: words without pure punctuation.
            min_avg_word_length, max_avg_word_length: characters, mean.
            max_symbol_word_ratio: of ``#`` and of ellipses, to words.
            max_bullet_lines_ratio, max_ellipsis_lines_ratio: of lines.
            max_non_alpha_words_ratio: least share of words with a letter (datatrove's name misleads).
            min_stop_words: how many of `stop_words` must occur.
            stop_words: None: the, be, to, of, and, that, have, with.
        """

        min_doc_words: int | None = 50
        max_doc_words: int | None = 100_000
        min_avg_word_length: float | None = 3
        max_avg_word_length: float | None = 10
        max_symbol_word_ratio: float | None = 0.1
        max_bullet_lines_ratio: float | None = 0.9
        max_ellipsis_lines_ratio: float | None = 0.3
        max_non_alpha_words_ratio: float | None = 0.8
        min_stop_words: int | None = 2
        stop_words: list[str] | None = None

    def _make(self, **options: Any) -> Any:
        from datatrove.pipeline.filters import GopherQualityFilter

        return GopherQualityFilter(**options)


class GopherRepetition(Borrowed):
    """Gopher's repetition rules (Rae et al. 2021, table A1)."""

    name = "gopher_repetition"

    class Config(BorrowedOptions):
        """Options of `gopher_repetition`: datatrove's names and the paper's figures; None turns a rule off.

        Args:
            dup_line_frac, dup_para_frac: greatest share of lines and paragraphs that repeat an earlier one.
            dup_line_char_frac, dup_para_char_frac: the same in characters.
            top_n_grams: (n, greatest share of characters in the most frequent n-gram).
            dup_n_grams: (n, greatest share of characters in repeated n-grams).
        """

        dup_line_frac: float | None = 0.3
        dup_para_frac: float | None = 0.3
        dup_line_char_frac: float | None = 0.2
        dup_para_char_frac: float | None = 0.2
        top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
        dup_n_grams: tuple[tuple[int, float], ...] = (
            (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10),
        )  # fmt: skip

    def _make(self, **options: Any) -> Any:
        from datatrove.pipeline.filters import GopherRepetitionFilter

        return GopherRepetitionFilter(**options)


class C4Quality(Borrowed):
    """C4's line and page rules (Raffel et al. 2020, section 2.2); edits the text."""

    name = "c4_quality"

    class Config(BorrowedOptions):
        """Options of `c4_quality`: datatrove's names and C4's figures; -1 turns a limit off.

        Args:
            split_paragraph: judge lines; otherwise sentences.
            remove_citations: delete ``[1]``, ``[edit]``, ``[citation needed]``.
            filter_no_terminal_punct: drop lines that do not end like a sentence.
            min_num_sentences: reject texts with fewer sentences left.
            min_words_per_line, max_word_length: drop lines beyond.
            filter_lorem_ipsum, filter_curly_bracket: reject texts with these.
            filter_javascript, filter_policy: drop lines with these.
        """

        split_paragraph: bool = True
        remove_citations: bool = True
        filter_no_terminal_punct: bool = True
        min_num_sentences: int = Field(5, ge=-1)
        min_words_per_line: int = Field(3, ge=-1)
        max_word_length: int = Field(1000, ge=-1)
        filter_lorem_ipsum: bool = True
        filter_javascript: bool = True
        filter_curly_bracket: bool = True
        filter_policy: bool = True

    def _make(self, **options: Any) -> Any:
        from datatrove.pipeline.filters import C4QualityFilter

        return C4QualityFilter(**options)
