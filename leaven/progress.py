"""What a run shows and writes down while it works.

The same facts go to the terminal (rich) and, one JSON object a line, to ``events.jsonl``: documents done,
requests in flight and answered, tokens and tokens/s, money, time left. A terminal sees a live bar; a log
file sees a plain line every `PLAIN_SECONDS`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leaven.lm.client import LanguageModel

TICK_SECONDS = 0.5
EVENT_SECONDS = 2.0
PLAIN_SECONDS = 15.0


class Reporter:
    """Shows progress and appends events.

    Args:
        events: file to append to.
        console: where to show; rich decides by itself whether it is a terminal.
    """

    def __init__(self, events: Path, console: Console) -> None:
        self.console = console
        self._path = events
        self._lock = threading.Lock()

    def event(self, kind: str, **facts: Any) -> None:
        """Append one event with the time."""
        line = json.dumps(
            {"time": round(time.time(), 3), "event": kind, **facts}, ensure_ascii=False, default=str
        )
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def say(self, line: str) -> None:
        """A line that stays: shown, and an event."""
        self.event("note", line=line)
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, model: LanguageModel | None = None) -> Iterator[StageProgress]:
        """Progress of one stage, shown and recorded until the block ends."""
        self.event("stage started", stage=name)
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
        )
        live = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not live) as bar:
            progress = StageProgress(name, model, self, bar)
            ticker = threading.Thread(target=progress.tick_until_done, daemon=True)
            ticker.start()
            try:
                yield progress
            finally:
                progress.stop.set()
                ticker.join()
        self.event("stage ended", stage=name, **progress.facts())


class StageProgress:
    """Call it with (done, total); a thread shows it and reads the model's own counters."""

    def __init__(self, name: str, model: LanguageModel | None, reporter: Reporter, bar: Progress) -> None:
        self._name, self._model, self._reporter, self._bar = name, model, reporter, bar
        self._task = bar.add_task(name, total=None, facts="")
        self._what = ""
        self._done = 0
        self._total: int | None = None
        self._started = time.monotonic()
        self._tokens_before = model.traffic.usage.completion if model else 0
        self.stop = threading.Event()

    def __call__(self, done: int, total: int | None) -> None:
        self._done, self._total = done, total

    def named(self, what: str, done: int, total: int | None) -> None:
        """For stages that count several things one after another."""
        self._what = what
        self(done, total)

    def facts(self) -> dict[str, Any]:
        """What is known now, for a person and for the events file."""
        seconds = max(1e-9, time.monotonic() - self._started)
        found: dict[str, Any] = {"done": self._done, "total": self._total, "seconds": round(seconds, 1)}
        if self._what:
            found["what"] = self._what
        if self._done and self._total:
            found["seconds_left"] = round(seconds / self._done * (self._total - self._done), 1)
        if self._model is not None:
            traffic, gate = self._model.traffic, self._model.gate
            written = traffic.usage.completion - self._tokens_before
            found |= {
                "in_flight": gate.in_flight,
                "waiting": gate.waiting,
                "limit": int(gate.limit),
                "requests": traffic.answered,
                "from_store": traffic.from_store,
                "retries": traffic.retries,
                "prompt_tokens": traffic.usage.prompt,
                "cached_tokens": traffic.usage.cached,
                "completion_tokens": traffic.usage.completion,
                "tokens_per_second": round(written / seconds, 1),
                "money": self._model.meter.money,
            }
        return found

    def tick_until_done(self) -> None:
        last_event = last_plain = time.monotonic()
        while not self.stop.wait(TICK_SECONDS):
            facts, now = self.facts(), time.monotonic()
            self._bar.update(self._task, completed=self._done, total=self._total, facts=_line(facts))
            if now - last_event >= EVENT_SECONDS:
                self._reporter.event("progress", stage=self._name, **facts)
                last_event = now
            if not self._reporter.console.is_terminal and now - last_plain >= PLAIN_SECONDS:
                self._reporter.console.print(
                    f"{self._name}: {self._done} of {self._total} {_line(facts)}", soft_wrap=True
                )
                last_plain = now


def _line(facts: dict[str, Any]) -> str:
    if "in_flight" not in facts:
        return str(facts.get("what", ""))
    parts = [
        f"{facts['in_flight']}/{facts['limit']} in flight",
        f"{facts['requests']:,} answered",
        f"{facts['tokens_per_second']:,.0f} tok/s",
    ]
    if facts["from_store"]:
        parts.append(f"{facts['from_store']:,} from store")
    if facts["money"] is not None:
        parts.append(f"{facts['money']:.2f} spent")
    return " · ".join(parts)
