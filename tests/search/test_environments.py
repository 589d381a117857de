"""The research environments: every choice has an effect, baselines learn, and evaluations cannot be fooled.

Commands are started here as a search starts them, but without its sandbox: plain processes in a temporary copy.
"""

from __future__ import annotations

import ast
import gzip
import importlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2] / "environments"
NAMES = ["nanogpt", "grpo"]
UNIFORM = 'sys.stdout.buffer.write(struct.pack("<f", 0.0) * 256 * windows)'


def read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((ROOT / name / "env.yaml").read_text())
    return value


def constants(path: Path) -> dict[str, Any]:
    """Every `NAME = literal` at the top level of a file."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id.isupper()
        ):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def lay(name: str, to: Path) -> tuple[Path, Path]:
    """A copy of code/ and one of eval/, each with its data."""
    spec = read(name)
    for folder, data in (("code", "data"), ("eval", "eval_data")):
        (to / folder).mkdir(parents=True)
        for file in (ROOT / name / folder).glob("*.py"):
            (to / folder / file.name).write_bytes(file.read_bytes())
        for new, source in spec.get(data, {}).items():
            (to / folder / new).write_bytes((ROOT / name / source).read_bytes())
    return to / "code", to / "eval"


def variables(name: str, copy: Path, **changed: object) -> dict[str, str]:
    given = (
        {"SEED": 0, "OMP_NUM_THREADS": 1, "COPY": copy, "HOME": copy.parent}
        | read(name)["variables"]
        | changed
    )
    return {"PATH": os.environ["PATH"]} | {key: str(value) for key, value in given.items()}


def start(command: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *command.split()[1:]]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def ask(answerer: str, copy: Path, held: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the evaluation of nanogpt against an answerer: two processes, two pipes."""
    question, asked = os.pipe()
    answered, answer = os.pipe()
    words = [sys.executable, *answerer.split()[1:]]
    with subprocess.Popen(
        words, cwd=copy, env=env, stdin=question, stdout=answer, stderr=subprocess.DEVNULL
    ) as other:
        os.close(question), os.close(answer)
        result = subprocess.run(
            [sys.executable, "evaluate.py"], cwd=held, env=env | {"ASK": str(asked), "ANSWER": str(answered)},
            pass_fds=(asked, answered), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        os.close(asked), os.close(answered)
        other.kill()
    return result


def facts(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    value: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return value


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Imports modules of an environment anew, under other variables; none is left behind."""
    mine = {file.stem for name in NAMES for file in (ROOT / name).glob("*/*.py")}
    before = list(sys.path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def load(name: str, *modules: str, folder: str = "code", **changed: object) -> list[ModuleType]:
        for key, value in variables(name, tmp_path, **changed).items():
            monkeypatch.setenv(key, value)
        for module in mine & sys.modules.keys():
            del sys.modules[module]
        paths = [str(ROOT / name / each) for each in (folder, "code")]
        monkeypatch.setattr(sys, "path", [*paths, *before])
        return [importlib.import_module(module) for module in modules]

    yield load
    for module in mine & sys.modules.keys():
        del sys.modules[module]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_constants_within_their_range(name: str) -> None:
    spec = read(name)
    assert 8 <= len(spec["parameters"]) <= 16
    for key, rule in spec["parameters"].items():
        value = constants(ROOT / name / "code" / rule["file"])[key]
        assert not any(fnmatch(rule["file"], glob) for glob in spec["protect"])
        if "choices" in rule:
            assert value in rule["choices"] and type(value) is type(rule["choices"][0]), key
        else:
            assert rule["low"] <= value <= rule["high"], key


@pytest.mark.parametrize("name", NAMES)
def test_what_is_protected_exists_and_nothing_leaks(name: str) -> None:
    spec = read(name)
    code = {file.name for file in (ROOT / name / "code").glob("*.py")}
    assert set(spec["protect"]) <= code
    for file in (*(ROOT / name / "code").glob("*.py"), *(ROOT / name / "eval").glob("*.py")):
        assert "leaven" not in file.read_text(), "an environment stands alone"
    assert not set(spec.get("data", {}).values()) & set(spec["eval_data"].values())


def test_validation_stories_are_not_in_the_training_stories() -> None:
    def runs(lines: list[str]) -> set[str]:
        words = [json.loads(line)["text"].lower().split() for line in lines]
        return {" ".join(text[i : i + 12]) for text in words for i in range(len(text) - 11)}

    spec = read("nanogpt")
    trained = runs(
        gzip.decompress((ROOT / "nanogpt" / spec["data"]["stories.jsonl.gz"]).read_bytes())
        .decode()
        .splitlines()
    )
    asked = runs((ROOT / "nanogpt" / spec["eval_data"]["documents.jsonl"]).read_text().splitlines())
    assert len(trained) > 100_000 and len(asked) > 5_000
    assert not trained & asked


def test_nanogpt_by_hand(tmp_path: Path) -> None:
    """Trains, answers and is evaluated; the same seed gives the same weights, bit for bit."""
    weights = []
    for number in "ab":
        copy, held = lay("nanogpt", tmp_path / number)
        env = variables("nanogpt", copy, SEED=3, BUDGET_TOKENS=8192)
        result = start("python train.py", copy, env)
        assert result.returncode == 0, result.stderr
        assert "bytes 8192" in result.stdout.splitlines()[-1]
        weights.append((copy / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    found = facts(ask("python answer.py", copy, held, env))
    assert found["bytes"] == 8 * 20 * 128
    assert found["score"] == pytest.approx(1 / found["loss"])
    assert 2.0 < found["loss"] < 0.9 * math.log(256), (
        "a few bytes teach which bytes are frequent, and no more"
    )


def stand_in(body: str) -> str:
    """An answerer without a model; `body` writes one answer."""
    return (
        "import os, select, struct, sys\n"
        'windows, steps = struct.unpack("<II", os.read(0, 8))\n'
        "for step in range(steps):\n"
        "    assert len(os.read(0, windows)) == windows\n"
        f"    {body}\n"
        "    sys.stdout.buffer.flush()\n"
    )


@pytest.mark.parametrize(("body", "why"), [
    (f"{UNIFORM} if step < 5 else sys.exit(0)", "the answerer ended at step 6 of 128: 0 of"),
    ('sys.stdout.buffer.write(b"12345"); sys.exit(1)', "the answerer ended at step 1 of 128: 5 of"),
    ("sys.exit(1)", "the answerer ended"),
    (UNIFORM.replace("0.0", 'float("nan")'), "not finite at step 1 of 128"),
    (UNIFORM.replace("0.0", 'float("inf")'), "not finite at step 1 of 128"),
    ('print("loss 0.1"); sys.exit(0)', "the answerer ended at step 1 of 128: 9 of"),
])  # fmt: skip
def test_a_bad_answerer_fails_with_one_line(tmp_path: Path, body: str, why: str) -> None:
    copy, held = lay("nanogpt", tmp_path)
    (copy / "answer.py").write_text(stand_in(body))
    result = ask("python answer.py", copy, held, variables("nanogpt", copy))
    assert result.returncode == 1 and result.stdout == ""
    assert why in result.stderr and len(result.stderr.splitlines()) == 1


def test_answers_are_normalised_and_nothing_is_told_early(tmp_path: Path) -> None:
    """Equal logits cost ln 256, however high; and no byte comes before the prediction for it."""
    copy, held = lay("nanogpt", tmp_path)
    patient = f"select.select([0], [], [], 0.002)[0] and sys.exit(1); {UNIFORM.replace('0.0', '300.0')}"
    (copy / "answer.py").write_text(stand_in(patient))
    found = facts(ask("python answer.py", copy, held, variables("nanogpt", copy)))
    assert found["loss"] == pytest.approx(math.log(256), abs=1e-12)


def test_windows_share_one_byte_and_cover_the_beginning(fresh: Any) -> None:
    (evaluate,) = fresh("nanogpt", "evaluate", folder="eval")
    path = ROOT / "nanogpt" / read("nanogpt")["eval_data"]["documents.jsonl"]
    text = json.loads(path.read_text().splitlines()[0])["text"].encode()
    windows = evaluate.windows(path, 128)
    assert windows[0].tobytes() + b"".join(w[1:].tobytes() for w in windows[1:20]) == text[: 20 * 128 + 1]
    assert evaluate.windows(path, 1024).shape == (24, 1025)


CHOICES = [
    ("DEPTH", 2), ("WIDTH", 64), ("HEAD_WIDTH", 16), ("MLP_TIMES", 2), ("ACTIVATION", "relu2"), ("ACTIVATION", "silu"),
    ("ACTIVATION", "swiglu"), ("POSITIONS", "rope"), ("POSITIONS", "alibi"), ("NORM", "rms"), ("NORM_PLACE", "post"),
    ("TIED", False), ("INIT_STD", 0.05), ("DROPOUT", 0.2), ("CONTEXT", 256), ("BATCH", 4), ("OPTIMIZER", "muon"),
    ("LEARNING_RATE", 0.01), ("BETA2", 0.99), ("WEIGHT_DECAY", 0.5), ("SCHEDULE", "linear"), ("SCHEDULE", "cosine"),
    ("WARMUP", 0.5), ("CLIP", 0.1), ("EMA", 0.9),
]  # fmt: skip


@pytest.mark.slow
def test_every_choice_of_nanogpt_has_an_effect_and_answers_as_it_trains(fresh: Any, tmp_path: Path) -> None:
    """After four steps no two choices have the same loss; asked byte by byte, each model says what it says at once."""
    import torch

    source = ROOT / "nanogpt" / read("nanogpt")["data"]["stories.jsonl.gz"]
    (tmp_path / "stories.jsonl.gz").write_bytes(source.read_bytes())
    text = torch.randint(97, 123, (4, 60), generator=torch.Generator().manual_seed(1))
    losses: dict[float, object] = {}
    for key, value in [("SEED", 0), ("SEED", 1), *CHOICES]:
        (config,) = fresh("nanogpt", "config", BUDGET_TOKENS=4096, SEED=value if key == "SEED" else 0)
        if key != "SEED":
            assert getattr(config, key) != value
            setattr(config, key, value)
        train, model = importlib.import_module("train"), importlib.import_module("model")
        train.main()
        gpt = model.GPT().eval()
        gpt.load_state_dict(load_file("model.safetensors"))
        past, steps = None, []
        with torch.inference_mode():
            whole, _ = gpt(text)
            for i in range(text.shape[1]):
                logits, past = gpt(text[:, i : i + 1], past)
                steps.append(logits)
        assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-4), (key, value)
        loss = whole.log_softmax(-1).sum().item()
        assert math.isfinite(loss) and loss not in losses, (key, value, losses.get(loss))
        losses[loss] = key, value
    covered = {key for key, _ in CHOICES}
    assert set(read("nanogpt")["parameters"]) <= covered
    for key, rule in read("nanogpt")["parameters"].items():
        words = [choice for choice in rule.get("choices", []) if isinstance(choice, str)]
        assert set(words) <= {v for k, v in CHOICES if k == key} | {
            constants(ROOT / "nanogpt/code/config.py")[key]
        }


def test_a_mistyped_choice_is_named(fresh: Any) -> None:
    (config,) = fresh("nanogpt", "config", BUDGET_TOKENS=5120)
    config.POSITIONS = "sinus"
    with pytest.raises(SystemExit, match="POSITIONS is 'sinus', but must be one of learned, rope, alibi"):
        importlib.import_module("model")


def test_the_budget_of_nanogpt(fresh: Any) -> None:
    (setting,) = fresh("nanogpt", "setting", BUDGET_TOKENS=3000)
    budget = setting.Budget()
    budget.spend(2000)
    assert budget.fraction() == pytest.approx(2 / 3) and not budget.allows(1001)
    with pytest.raises(SystemExit, match="1001 bytes more after 2000"):
        budget.spend(1001)
    (setting,) = fresh("nanogpt", "setting", BUDGET_TOKENS=0, BUDGET_SECONDS=0.2)
    budget = setting.Budget()
    while budget.allows(1):
        budget.spend(1)
    assert budget.tokens > 100 and budget.fraction() == 1
    with pytest.raises(SystemExit, match="exactly one"):
        fresh("nanogpt", "setting", BUDGET_TOKENS=1, BUDGET_SECONDS=1)


def test_settings_scale_the_model(fresh: Any) -> None:
    sizes = {}
    for name, setting in (("small", {}), *read("nanogpt")["settings"].items()):
        (model,) = fresh("nanogpt", "model", **setting.get("variables", {}))
        sizes[name] = model.DEPTH, model.WIDTH, model.HEADS, model.CONTEXT
    assert sizes["small"] == sizes["seconds"]
    assert sizes["larger"] == (3, 192, 6, 128)
    assert sizes["gpu"] == (12, 768, 12, 1024), "GPT-2 small"


def test_muon_makes_matrices_nearly_orthogonal(fresh: Any) -> None:
    import torch

    (optimizer,) = fresh("nanogpt", "optimizer")
    for shape in ((32, 96), (96, 32), (64, 64)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(optimizer.orthogonal(matrix, steps=8))
        assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.slow
def test_grpo_learns_by_hand(tmp_path: Path) -> None:
    """With a quarter of the budget it answers clearly more than the base."""
    copy, held = lay("grpo", tmp_path)
    env = variables("grpo", copy, BUDGET_ANSWERS=4096)
    result = start("python train.py", copy, env)
    assert result.returncode == 0, result.stderr
    after = facts(start("python evaluate.py", held, env))
    assert start("python train.py", copy, env | {"BUDGET_ANSWERS": "0"}).returncode == 0, "the base as it is"
    before = facts(start("python evaluate.py", held, env))
    assert after["questions"] == before["questions"] == 1000
    assert 0.1 < before["score"] < 0.4
    assert after["score"] > before["score"] + 0.05


def test_hidden_questions_are_never_asked_in_training(fresh: Any) -> None:
    (questions,) = fresh("grpo", "questions", BUDGET_ANSWERS=3)
    every = [(a, b) for a in range(100) for b in range(100)]
    assert 0.18 < sum(map(questions.hidden, every)) / len(every) < 0.22
    assert not any(map(questions.hidden, questions.draw(500, random.Random(1))))
    assert all(map(questions.hidden, questions.draw(500, random.Random(1), of_hidden=True)))
    checker = questions.Checker()
    with pytest.raises(SystemExit, match="hidden question"):
        checker.rewards([next(filter(questions.hidden, every))], [[0]])
    assert checker.checked == 0
    question = next(q for q in every if not questions.hidden(q) and sum(q) > 99)
    right = questions.encode(f"{sum(question)}\n")
    wrong = [[*right[:-1], 1], [1, *right[1:]], [questions.END] * 4]
    assert checker.rewards([question] * 3, [right, *wrong[:2]]) == [1, 0, 0]
    with pytest.raises(SystemExit, match="does not allow 1 answers more after 3"):
        checker.rewards([question], [wrong[2]])


@pytest.mark.slow
def test_every_choice_of_grpo_has_an_effect(fresh: Any) -> None:
    import torch

    changes = {
        "QUESTIONS": 16, "GROUP": 4, "EPOCHS": 3, "MINIBATCHES": 4, "LEARNING_RATE": 0.001, "SCHEDULE": "linear",
        "CLIP_LOW": 0.01, "CLIP_HIGH": 0.01, "KL": 0.5, "ENTROPY": 0.05, "TEMPERATURE": 0.7, "NORMALIZE": False,
    }  # fmt: skip
    assert changes.keys() == read("grpo")["parameters"].keys()
    train, base = fresh("grpo", "train", "base", BUDGET_ANSWERS=512)
    start_from = base.base().state_dict()

    def warm() -> Any:
        policy = base.Policy()
        policy.load_state_dict(start_from)
        return policy

    train.base = warm
    plain = {"QUESTIONS": 32, "GROUP": 8, "EPOCHS": 2, "MINIBATCHES": 2, "LEARNING_RATE": 0.003, "KL": 0.04}
    original = {key: getattr(train, key) for key in changes} | plain
    seen: dict[float, str] = {}
    for key, value in {"none": None, **changes}.items():
        for name, kept in original.items():
            setattr(train, name, kept)
        if key != "none":
            assert original[key] != value
            setattr(train, key, value)
        train.main()
        total = sum(weight.double().abs().sum().item() for weight in load_file("model.safetensors").values())
        assert math.isfinite(total) and total not in seen, (key, seen.get(total))
        seen[total] = key
    assert all(
        torch.equal(a, b) for a, b in zip(warm().state_dict().values(), start_from.values(), strict=True)
    )


def test_what_an_answer_is_worth(fresh: Any) -> None:
    import torch

    (train,) = fresh("grpo", "train")
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    worth = train.worth(rewards)
    assert (
        worth[:4].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3) and worth[4:].abs().max() == 0
    )
    train.NORMALIZE = False
    assert train.worth(rewards)[:4].tolist() == [0.75, -0.25, -0.25, -0.25]
    answers = torch.tensor([[3, 4, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]])
    assert train.written(answers).sum(1).tolist() == [3, 4, 1]


def test_only_fitting_weights_are_evaluated(fresh: Any, tmp_path: Path) -> None:
    import torch

    evaluate, base = fresh("grpo", "evaluate", "base", folder="eval")
    path = tmp_path / "model.safetensors"
    with pytest.raises(SystemExit, match=r"wrote no model\.safetensors"):
        evaluate.load(path)
    good = base.Policy().state_dict()
    bad: list[tuple[dict[str, Any], str]] = [
        ({**good, "head.bias": torch.zeros(5)}, "head.bias is .* but must be"),
        ({**good, "more": torch.zeros(5)}, "more is .* but must be None"),
        ({k: v for k, v in good.items() if k != "head.bias"}, "head.bias is None"),
        ({**good, "head.bias": good["head.bias"] * math.nan}, "head.bias is not finite"),
        ({**good, "head.bias": good["head.bias"].half()}, "float16"),
        ({**good, "more": torch.zeros(100_000)}, "but the policy only"),
    ]
    for weights, why in bad:
        save_file({name: weight.clone() for name, weight in weights.items()}, path)
        with pytest.raises(SystemExit, match=why):
            evaluate.load(path)
    path.write_bytes(b"not weights")
    with pytest.raises(SystemExit, match="cannot be read"):
        evaluate.load(path)
    save_file(good, path)
    loaded = evaluate.load(path).state_dict()
    assert all(torch.equal(good[name], loaded[name]) for name in good)
