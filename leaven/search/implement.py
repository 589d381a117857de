"""An idea in words becomes a patch (paper 003, 4.2.2, "Implementer").

    idea --k samples at once--> answers --apply--> the first that applies
                                   none? --each revised with its log, up to r times--> the first that applies

The paper asks for 10 samples in parallel, lets the model revise each up to 2 times with the patch log, and takes the
first that patches; it does not say what comes first. Here a round is all samples at the same revision, and what
applies in the earliest round wins, within a round the lowest sample: the result depends on the answers alone, not on
which of them the network brought first. A round is waited for as a whole, so that every answer that was asked for is
in the store, and a search that goes on after a kill pays for none twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leaven.errors import Rejected
from leaven.lm.ask import Answerer, fill, in_order
from leaven.lm.base import Answer, Messages, Origin, Request, Sampling
from leaven.search.patch import PatchError, Rules, apply, as_diff, without_thoughts

PROMPT = """

-----

Turn the idea at the end of this message into a patch of the code above. Carry out the whole idea and nothing but the \
idea: what it does not speak of stays as it is. The patched code must run as it stands, unattended, by the rules \
above. If the idea leaves something open, choose the simplest reading and values that you expect to work.

Answer with the patch. You may say in a few sentences before it how you go about it. A file is changed in one of two \
ways.

1. A unified diff, best for small changes. Paths are those above. Copy the lines around a change exactly, three \
before and three after, so that they stand at one place only; that counts for more than the numbers after @@.

```diff
--- a/folder/file.py
+++ b/folder/file.py
@@ -10,3 +10,3 @@
 a line that stays
-a line that goes
+a line that comes
 another line that stays
```

2. The whole file, also for a new one. Write every line; nothing may be left out or hinted at.

=== FILE folder/file.py
first line
last line
=== END

A line "=== DELETE folder/file.py" deletes a file.

The idea:

{idea}"""

REVISE = """This could not be applied, and nothing was changed:

{log}

All changes are made to the code as it was shown at first. Send the complete patch once more, corrected."""

SAMPLING = Sampling(temperature=1.0, max_tokens=8192)

CUT_OFF = "the answer was cut off after {tokens} tokens; say less before the patch, and prefer a diff to whole files"


@dataclass(frozen=True, slots=True)
class Implemented:
    """What became of an idea.

    Args:
        patch: as `as_diff` writes it, or None if nothing applied.
        log: all that was tried up to what applied: sample, revision, reason.
        answers: keys in the response store of all answers received, round by round in order of samples.
    """

    patch: str | None
    log: str
    answers: tuple[str, ...]


@dataclass(slots=True)
class _Try:
    """One sample: the conversation so far and how it stands; `why` it failed, `refused` if no answer came."""

    sample: int
    messages: Messages
    key: str = ""
    patch: str | None = None
    why: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Implementer:
    """Writes patches of one codebase.

    Args:
        context: task and code as the model is shown them, the same for all ideas.
        code: text by path; what patches apply to.
        samples: asked for at once; 10 in the paper.
        revisions: of each, if none applied; 2 in the paper.
    """

    model: Answerer
    context: str
    code: Mapping[str, str]
    rules: Rules
    samples: int = 10
    revisions: int = 2
    sampling: Sampling = SAMPLING

    async def implement(self, idea: str, priority: int = 0) -> Implemented:
        """The first patch that applies.

        Args:
            priority: lower is asked for first.

        Raises:
            Stopped, UsageError: the model cannot be asked, for now.
        """
        # The context comes first and the idea last: one prefix that a server's cache serves for every idea.
        prompt = self.context + fill(PROMPT, {"idea": idea})
        tries = [_Try(sample, (("user", prompt),)) for sample in range(self.samples)]
        log: list[str] = []
        keys: list[str] = []
        for revision in range(self.revisions + 1):
            asked = [self._ask(one, idea, revision, priority) for one in tries]
            tries = [one async for one in in_order(asked)]
            keys += [one.key for one in tries if one.key]
            for one in tries:
                log.append(f"sample {one.sample}, revision {revision}: {one.why or 'applies'}")
                if one.patch is not None:
                    return Implemented(one.patch, "\n".join(log), tuple(keys))
            tries = [one for one in tries if not one.refused]
        return Implemented(None, "\n".join(log), tuple(keys))

    async def _ask(self, one: _Try, idea: str, revision: int, priority: int) -> _Try:
        """One answer, and what it does to the code."""
        origin = Origin(
            method="search",
            step="revise" if revision else "implement",
            variables={"idea": idea, "revision": revision},
        )
        shared = len(self.context) + PROMPT.index("{idea}")
        request = Request(one.messages, self.sampling, sample=one.sample, shared=shared, origin=origin)
        try:
            key, answer = await self.model.answer(request, priority)
        except Rejected as error:
            return _Try(one.sample, one.messages, why=str(error), refused=True)
        patch, why = self._try(answer)
        text = without_thoughts(answer.text).strip() or "(no answer)"
        messages = (*one.messages, ("assistant", text), ("user", fill(REVISE, {"log": why})))
        return _Try(one.sample, messages, key, patch, why)

    def _try(self, answer: Answer) -> tuple[str | None, str]:
        """(the patch that an answer is or None, why not)."""
        if answer.finish == "length":
            return None, fill(CUT_OFF, {"tokens": self.sampling.max_tokens})
        try:
            return as_diff(self.code, apply(answer.text, self.code, self.rules)), ""
        except PatchError as error:
            return None, str(error)
