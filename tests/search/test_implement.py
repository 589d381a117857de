"""From an idea to a patch: which sample wins, what a revision is told, and that nothing is paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from measuring import Scripted
from server import Server

from leaven.errors import Stopped
from leaven.lm.base import Answer, Backend, Refused, Request, Sampling, Usage
from leaven.lm.client import LanguageModel
from leaven.lm.openai import Config
from leaven.lm.store import ResponseStore
from leaven.search.implement import Implemented, Implementer
from leaven.search.patch import Rules, apply

CODE = {"train.py": "LR = 1\n", "eval.py": "SCORE = 0\n"}
CONTEXT = "Make it better. Braces like {idea} are text here.\n\n" + "\n".join(CODE.values())
RULES = Rules(protect=("eval.py",))


def diff(rate: object, path: str = "train.py") -> str:
    return f"I set it.\n```diff\n--- a/{path}\n+++ b/{path}\n@@ -7 +7 @@\n-{CODE[path].strip()}\n+LR = {rate}\n```\n"


def implement(
    folder: Path,
    backend: Backend,
    idea: str = "Raise the rate.",
    *,
    samples: int = 3,
    revisions: int = 2,
    max_tokens: int = 500,
) -> tuple[Implemented, LanguageModel]:
    async def work() -> tuple[Implemented, LanguageModel]:
        store = ResponseStore(folder / "answers", "test")
        model = LanguageModel(backend, store, first_delay=0.002)
        sampling = Sampling(max_tokens=max_tokens)
        try:
            implementer = Implementer(model, CONTEXT, CODE, RULES, samples, revisions, sampling)
            return await implementer.implement(idea), model
        finally:
            await model.close()
            store.close()

    return asyncio.run(work())


def rate(done: Implemented) -> str:
    assert done.patch is not None
    return apply(done.patch, CODE, RULES)["train.py"].removeprefix("LR = ").strip()


def revision(request: Request) -> int:
    return len(request.messages) // 2


def test_the_first_sample_that_applies_wins_whichever_comes_first(tmp_path: Path) -> None:
    class Slow(Scripted):
        """Later samples answer sooner."""

        async def generate(self, request: Request) -> Answer:
            await asyncio.sleep(0.02 * (3 - request.sample))
            return await super().generate(request)

    backend = Slow(lambda request: diff(10 + request.sample) if request.sample else "No idea.")
    done, _ = implement(tmp_path, backend)
    assert rate(done) == "11" and backend.sent == 3 == len(done.answers)
    assert done.log.splitlines() == [
        "sample 0, revision 0: the answer changes nothing: it holds no diff and no whole file",
        "sample 1, revision 0: applies",
    ]
    assert done.patch is not None and done.patch.startswith("diff --git a/train.py b/train.py\n")


def test_an_earlier_round_wins_over_a_lower_sample(tmp_path: Path) -> None:
    script = {(0, 1): diff("late"), (2, 1): diff("later")}
    backend = Scripted(lambda request: script.get((request.sample, revision(request)), "nothing"))
    done, _ = implement(tmp_path, backend)
    assert rate(done) == "late" and backend.sent == 6 == len(done.answers)
    assert done.log.splitlines()[-1] == "sample 0, revision 1: applies"


def test_a_revision_is_told_why_and_sees_its_own_answer_without_thoughts(tmp_path: Path) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> str:
        asked.append(request)
        return diff(9) if revision(request) == 2 else f"<think>Cheat?</think>{diff(9, 'eval.py')}"

    done, _ = implement(tmp_path, Scripted(answer), "Score {more}.", samples=1)
    assert rate(done) == "9" and [revision(request) for request in asked] == [0, 1, 2]
    first, second, last = (request.messages for request in asked)
    assert first[0][1].startswith(CONTEXT) and first[0][1].endswith("The idea:\n\nScore {more}.")
    assert [role for role, _ in last] == ["user", "assistant", "user", "assistant", "user"]
    assert last[: len(second)] == second and second[:1] == first
    assert second[1][1] == diff(9, "eval.py").strip()
    assert "eval.py: this file is protected" in second[2][1]
    assert [request.origin.step for request in asked] == ["implement", "revise", "revise"]
    assert all(request.origin.method == "search" for request in asked)
    assert done.log.count("eval.py: this file is protected") == 2


def test_what_ideas_share_comes_first(tmp_path: Path) -> None:
    asked: list[Request] = []

    def answer(request: Request) -> str:
        asked.append(request)
        return diff(2)

    for idea in ("One.", "Another, longer."):
        implement(tmp_path, Scripted(answer), idea, samples=1)
    heads = {request.messages[0][1][: request.shared] for request in asked}
    assert len(heads) == 1 and heads.pop().endswith("The idea:\n\n")
    assert [request.messages[0][1][request.shared :] for request in asked] == ["One.", "Another, longer."]


def test_nothing_applies(tmp_path: Path) -> None:
    backend = Scripted(lambda request: "=== FILE train.py\nLR = 1\n=== END\n")
    done, _ = implement(tmp_path, backend, samples=2, revisions=1)
    assert done.patch is None and len(done.answers) == len(set(done.answers)) == 4
    assert [line.split(":")[0] for line in done.log.splitlines()] == [
        f"sample {sample}, revision {revision}" for revision in range(2) for sample in range(2)
    ]


class Failing(Scripted):
    """Sample 0 fails with an error; others answer."""

    def __init__(self, error: Exception, answering: Callable[[Request], str]) -> None:
        super().__init__(answering)
        self.error = error

    async def generate(self, request: Request) -> Answer:
        if request.sample == 0:
            raise self.error
        return await super().generate(request)


def test_a_request_that_is_refused_is_a_failed_sample(tmp_path: Path) -> None:
    late = Failing(Refused("too long"), lambda request: diff(5) if revision(request) else "no")
    done, _ = implement(tmp_path, late, samples=2)
    assert rate(done) == "5" and len(done.answers) == 2
    assert done.log.splitlines()[0] == "sample 0, revision 0: refused by server: too long"
    assert "sample 0, revision 1" not in done.log  # there is nothing to revise
    done, _ = implement(tmp_path, Failing(Refused("too long"), lambda request: ""), samples=1)
    assert done == Implemented(None, "sample 0, revision 0: refused by server: too long", ())


def test_a_model_that_cannot_be_asked_is_no_failed_sample(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        implement(tmp_path, Failing(Stopped("budget"), lambda request: diff(1)))


def test_an_answer_that_was_cut_off_is_not_applied(tmp_path: Path) -> None:
    class Cut(Scripted):
        async def generate(self, request: Request) -> Answer:
            whole = await super().generate(request)
            return whole if revision(request) else Answer(whole.text, "length", Usage(1, 0, 500))

    done, _ = implement(tmp_path, Cut(lambda request: diff(10 + revision(request))), samples=1)
    assert rate(done) == "11"  # not 10, though it would apply
    assert done.log.startswith("sample 0, revision 0: the answer was cut off after 500 tokens")


def test_nothing_is_paid_for_twice(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        return diff(4) if revision(request) == 1 and request.sample == 1 else f"<think>{'x' * 40}"

    first, _ = implement(tmp_path, Scripted(answer))
    silent = Scripted(answer)
    again, model = implement(tmp_path, silent)
    assert again == first and rate(first) == "4"
    assert silent.sent == 0 and model.traffic.from_store == 6


def test_a_real_server_whose_answers_are_no_patches(tmp_path: Path, server: Server) -> None:
    """Prose, silence, answers cut off, broken JSON, a refused request: all are failures with a reason."""
    for kind in ("empty", "length", "abort", "nonsense", "broken_json"):
        server.fault(kind)
    server.fault("status", status=400, message="prompt too long")
    config = Config(name="m", url=server.url)
    done, model = implement(tmp_path, config.open(), samples=7, revisions=1)
    assert done.patch is None
    assert done.log.count("revision 0") == 7 and done.log.count("revision 1") == 6
    assert done.log.count("prompt too long") == done.log.count("cut off after") == 1
    assert model.traffic.answered == 12 == len(done.answers) and model.traffic.refused == 1
    assert server.last()["body"]["messages"][-1]["content"].endswith("corrected.")
    again, model = implement(tmp_path, config.open(), samples=7, revisions=1)
    # Only what was refused is asked again, and now the server answers: that sample and its revision.
    assert again.log.count("revision 1") == 7
    assert model.traffic.from_store == 12 and model.traffic.sent == 2
