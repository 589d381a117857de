"""A small model takes over the writing: MGA's tool model, from a teacher's answers to its own run.

    a teacher's finished run --answers fit to learn from--> D_SFT
    a base model --finetune on D_SFT, some documents held out--> student
    the held-out documents --the student in the teacher's place--> scores of both, side by side

The procedure of paper 000, appendix B: one model learns to write genre-audience pairs and reformulations from the
answers of a large one that the judge scored 3 or more, three epochs with a cosine schedule. (The paper trains one
model on each set; one for both serves as a plan's `model` without further ado.) There the student's texts are
scored 3 or more in 92.06% of all cases, the teacher's in 93.11%.

    python recipes/tool_model.py                # recorded teacher, tiny student: two minutes on two cores
    python recipes/tool_model.py --teacher runs/mine --checkpoint models/base-3b \\
        --judge '{"backend": "openai", "name": "teacher", "url": "http://127.0.0.1:8000/v1"}'

Without --checkpoint the student is a model of a million parameters that has read for a minute. It cannot write usable
pairs, let alone texts, and the table then says so: it is there to show that everything runs. What that student does
learn is shown by the loss of the teacher's answers about the held-out documents, before and after. A recording
cannot judge new texts, so without --judge a student's texts remain without a score.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from leaven.corpus.read import read_documents
from leaven.errors import UsageError
from leaven.generate import mga
from leaven.lm.ask import StepOverride
from leaven.plan import PlanFile, resolve
from leaven.run import run
from leaven.stage import read_stage
from leaven.train.compare import compare
from leaven.train.finetune import Finetune, finetune
from leaven.train.rows import IGNORED, Encoder, row_of
from leaven.train.tool import Teacher, distill, write_examples

STORIES = Path(__file__).resolve().parent.parent / "examples" / "stories"
CONTEXT = 3072  # of the tiny model: a story, a prompt and an answer


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("runs/tool_model"), help="folder of all that is made")
    add("--teacher", type=Path, help="a finished run; by default that of the recorded stories is made")
    add("--stage", default="mga", help="name of its mga stage")
    add("--checkpoint", type=Path, help="base model of the student; by default a tiny one is trained")
    add("--judge", type=json.loads, help="model that judges the student's texts, as a plan's `model` (JSON)")
    add("--held-out", type=int, default=3, help="documents that the student is not taught with")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=4)
    add(
        "--accumulate",
        type=int,
        default=4,
        help="forward passes of a step; one row each saves memory and padding",
    )
    add("--learning-rate", type=float, help="peak; 5e-6 for --checkpoint, 1e-3 for the tiny model")
    add("--base-tokens", type=int, default=150_000, help="that the tiny model reads before")
    return found


def teacher_plan(out: Path) -> dict[str, Any]:
    """The recorded answers of a large model about eight stories."""
    return {
        "name": "teacher", "out": out / "teacher", "answers": out / "answers",
        "documents": {"path": str(STORIES / "documents.jsonl")},
        "model": {
            "backend": "replay", "path": STORIES / "answers.jsonl", "name": "recorded large language model",
        },
        "generate": ["mga"],
    }  # fmt: skip


def base_plan(out: Path, tokens: int) -> dict[str, Any]:
    """A tiny model that has read other stories."""
    return {
        "name": "base", "out": out / "base", "documents": {"path": str(STORIES / "others.jsonl.gz")},
        "tokenizer": 4096,
        "mix": {
            "tokens": tokens // CONTEXT * CONTEXT, "context": CONTEXT,
            "sources": {"others": {"stage": "corpus"}}, "arms": {"base": {"sources": {"others": 1}}},
        },
        "train": {"shape": "1m", "batch_size": 1, "learning_rate": 3e-3},
    }  # fmt: skip


def student_plan(
    options: argparse.Namespace, teacher: Teacher, made: PlanFile, model: Path
) -> dict[str, Any]:
    """The student in the teacher's place: the same prompts and options, over the held-out documents."""
    steps: dict[str, dict[str, Any]] = {}
    for name, step in teacher.steps.items():
        fields = set(StepOverride.model_fields) - {"prompt_file"}
        changed = {key for key in fields if getattr(step, key) != getattr(mga.STEPS[name], key)}
        if changed:
            steps[name] = step.model_dump(include=changed)
    written = {
        **teacher.config.model_dump(), "judge": False, "name": options.stage, "steps": steps,
        "chunk_tokens": teacher.chunk_tokens,
    }  # fmt: skip
    judging = {"judges": {"ask": ["consistency"], "sample": 1_000_000}}
    return {
        "name": "student", "out": options.out / "student", "answers": options.out / "answers",
        "documents": {"path": str(options.out / "held_out.jsonl")}, "tokenizer": str(teacher.corpus),
        "chunk_tokens": made.chunk_tokens,
        "model": {"backend": "transformers", "path": model, "name": "student"},
        "generate": [{"mga": written}],
        "measure": {"figures": [judging], "sample": 1_000_000, "model": options.judge} if options.judge else None,
        "max_failed": 1,
    }  # fmt: skip


def hold_out(made: PlanFile, number: int, path: Path) -> set[str]:
    """Write the last of the teacher's documents by id to a file, whole; returns their ids."""
    documents = sorted(read_documents(made.documents, lambda row: None), key=lambda document: document.id)
    if not 0 < number < len(documents):
        raise UsageError(
            f"--held-out must be between 1 and {len(documents) - 1}, the teacher's documents less one"
        )
    chosen = documents[-number:]
    rows = ({"id": one.id, "text": one.text, **one.metadata} for one in chosen)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {one.id for one in chosen}


def answer_loss(checkpoint: Path, rows: Sequence[dict[str, str]]) -> tuple[float, int]:
    """(natural-log loss per token of the answers that fit into the context, number of those answers)."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    encoder = Encoder(checkpoint, model, chat=False)
    model.to(device).eval()
    total, tokens, answers = 0.0, 0, 0
    for row in rows:
        ids, labels = (torch.tensor([one], device=device) for one in encoder.encode(row_of(row, "held out")))
        if ids.shape[1] <= model.config.max_position_embeddings:
            with torch.inference_mode():
                loss = float(model(input_ids=ids, labels=labels).loss)
            count = int((labels[:, 1:] != IGNORED).sum())
            total, tokens, answers = total + loss * count, tokens + count, answers + 1
    return (total / tokens if tokens else math.nan), answers


def _reasons(counted: Mapping[str, Any]) -> str:
    """Why the others were left out, commonest first."""
    found = sorted(counted["reasons"].items(), key=lambda one: -one[1])
    return f" ({', '.join(f'{number:,} {reason}' for reason, number in found)})" if found else ""


def main() -> None:
    options = parser().parse_args()
    options.out = options.out.resolve()
    console = Console()
    try:
        work(options, console)
    except UsageError as error:
        raise SystemExit(f"tool_model: {error}") from error


def work(options: argparse.Namespace, console: Console) -> None:
    out: Path = options.out
    tiny = options.checkpoint is None
    if options.teacher is None:
        run(resolve(teacher_plan(out), Path()), console=console)
    source = options.teacher or out / "teacher"
    teacher = Teacher(source, options.stage)
    out.mkdir(parents=True, exist_ok=True)
    made = PlanFile.model_validate_json((source / "plan.json").read_text(encoding="utf-8"))
    held = hold_out(made, options.held_out, out / "held_out.jsonl")
    parents = {one.id: one.metadata.get("parent", one.id) for one in read_stage(teacher.corpus)}

    examples = write_examples(source, out / "d_sft", options.stage)
    for name, counts in examples["sets"].items():
        console.print(f"D_SFT {name}: {counts['kept']:,} of {counts['read']:,} answers{_reasons(counts)}")
    rows = [row for one in distill(source, options.stage).values() for row in one.rows]
    taught = [row for row in rows if parents[row["document"]] not in held]
    asked = [row for row in rows if parents[row["document"]] in held]

    if tiny:
        run(resolve(base_plan(out, options.base_tokens), Path()), console=console)
    base = options.checkpoint or out / "base" / "train" / "base-0" / "model"
    how = Finetune(
        epochs=options.epochs, batch_size=options.batch_size, accumulate=options.accumulate,
        learning_rate=options.learning_rate or (1e-3 if tiny else 5e-6),
    )  # fmt: skip
    with console.status("finetuning") as status:
        manifest = finetune(
            base, how, out / "finetuned", taught, lambda what, at, all_: status.update(f"{what} {at}/{all_}")
        )
    counts = manifest["counts"]
    console.print(
        f"finetuned on {counts['kept']:,} of {counts['read']:,} rows{_reasons(manifest)}, "
        f"{counts['answer_tokens']:,} answer tokens in {counts['steps']:,} steps, {manifest['seconds']:.0f} s"
    )
    student = out / "finetuned" / "model"
    before, (after, number) = answer_loss(base, asked)[0], answer_loss(student, asked)
    console.print(
        f"loss of {number} teacher's answers on {len(held)} held-out documents: {before:.3f} -> {after:.3f}"
    )

    plan = resolve(student_plan(options, teacher, made, student), Path())
    result = run(plan, to="generate", console=console).manifests[f"generate/{options.stage}"]
    if options.judge and result["counts"]["kept"]:
        run(plan, to="measure", console=console)
    table = compare(source, out / "student", options.stage)
    (out / "comparison.json").write_text(json.dumps(table.to_json(), indent=1) + "\n", encoding="utf-8")
    print(table.markdown())  # as it is: to be read and to be pasted
    console.print(f"what became of the student's answers: {result['counts']['kept']} kept{_reasons(result)}")
    if tiny:
        console.print(
            "This student is a model of a million parameters that has read for a minute: it is not expected to write "
            "usable pairs or texts. These are its real rates; give --checkpoint for a student that can write."
        )


if __name__ == "__main__":
    main()
