"""What a search costs beside its experiments: overhead of an attempt, and how busy its workers are.

    python benchmarks/search.py [--attempts 40] [--seconds 2]

Experiments that sleep, in the real sandbox, patched by the embedded ideator and archived as always. An attempt's
overhead is its time without its run and its evaluation; workers are busy while they run or evaluate.

Targets: less than a second of overhead, workers busy 95% of the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml

from leaven.search.archive import Archive
from leaven.search.environment import load
from leaven.search.folder import search
from leaven.search.loop import Options
from leaven.search.sandbox import Sandbox

OVERHEAD, BUSY = 1.0, 0.95


def environment(folder: Path, seconds: float) -> None:
    """One that sleeps."""
    for part in ("code", "eval"):
        (folder / part).mkdir(parents=True)
    (folder / "code" / "train.py").write_text(
        f"import json, time\nX = 0.5\ntime.sleep({seconds})\nopen('model.json', 'w').write(json.dumps(X))\n"
    )
    (folder / "eval" / "evaluate.py").write_text(
        "import json, os\nx = json.load(open(os.path.join(os.environ['COPY'], 'model.json')))\n"
        "print(json.dumps({'score': x}))\n"
    )
    value = {
        "name": "sleep", "task": "Sleep.", "metric": {"name": "x", "direction": "higher"}, "run": "python train.py",
        "eval": "python evaluate.py", "parameters": {"X": {"file": "train.py", "low": 0.0, "high": 1.0}},
    }  # fmt: skip
    (folder / "env.yaml").write_text(yaml.safe_dump(value))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--attempts", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment(folder / "env", options.seconds)
        load(folder / "env")
        settings = Options("best-of-n", options.attempts, options.attempts, baselines=1)
        started = time.time()
        archive: Archive = search(folder / "env", folder / "out", settings)
        tried = [one for one in archive.attempts() if one.epoch >= 0]
        archive.close()
    assert all(one.score is not None for one in tried), [one.reason for one in tried]
    first = min((one.ended or 0) - one.seconds for one in tried)
    wall = max(one.ended or 0 for one in tried) - first
    inside = [one.run_seconds + one.eval_seconds for one in tried]
    overhead = [one.seconds - busy for one, busy in zip(tried, inside, strict=True)]
    workers = os.cpu_count() or 1
    busy = sum(inside) / (workers * wall)
    print(
        f"sandbox: {Sandbox.find().walls}; {workers} workers, {len(tried)} attempts of {options.seconds:g} s"
    )
    print(f"before the first attempt   {first - started:8.2f} s (sandbox found, baseline run once)")
    print(
        f"overhead of an attempt     {statistics.median(overhead):8.3f} s median, {max(overhead):.3f} s most"
    )
    print(f"evaluation                 {statistics.median(one.eval_seconds for one in tried):8.3f} s median")
    print(f"workers busy               {busy:8.1%}")
    met = max(overhead) < OVERHEAD and busy >= BUSY
    print("targets met" if met else f"TARGETS MISSED: overhead < {OVERHEAD} s, busy >= {BUSY:.0%}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
