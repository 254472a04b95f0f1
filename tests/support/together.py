"""Work that one process and two do alike, for comparison. ``accelerate launch`` starts this file as a script."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.calls import Calls, extraction
from support.distill_lab import CPU, RESUMED, Lab, arguments

from hskd import processes
from hskd.cli.app import app, main
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import HskdError
from hskd.spec import HSKSpec
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.training import GoldTrainer, HeadModule, Predictor, StageTrainer, seed_training
from hskd.trials.stages import RunOptions

SPEC = HSKSpec.parse("2l_3t_0.5w,precision=fp32")
EXAMPLES = 35
"""With batches of 32, the second batch has three examples: the shares of processes are two, one and none."""
EPOCHS = 3
STAGES = ("hsk", "prediction", "gold")
SUPERSET = Superset((0, 1, 2, 3, 4), (1, 2, 3, 4))
SHARD = 2**16


def train(lab: Lab, stage: str, accumulate: int, folder: Path) -> dict[str, Any]:
    """Train without dropout. Return the loss of every step, and each process's examples of every epoch."""
    kind, split = ("narrow" if stage == "hsk" else "rosita"), lab.train.first(EXAMPLES)
    student = lab.student(kind)  # type: ignore[arg-type]
    # AdamW would make full steps where a gradient is 0 except for rounding, such as that of a key's bias.
    plain = {"optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 1.0}
    shared = arguments(folder / "log", epochs=EPOCHS, batch_size=32, accumulate=accumulate, **plain)
    trainer: StageTrainer
    if stage == "hsk":
        trainer = HSKTrainer(HSKModule(student, 32), shared, split, lab.offline(SPEC))
    elif stage == "prediction":
        trainer = PredictionTrainer(HeadModule(student, lab.task.head), shared, split, lab.online(None))
    else:
        trainer = GoldTrainer(HeadModule(student, lab.task.head), shared, split)
    taken: dict[int, list[int]] = {}
    batch_loss = trainer.batch_loss

    def record(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        if batch["share"]:
            taken.setdefault(int(trainer.state.epoch or 0), []).extend(batch["example_ids"].tolist())
        return batch_loss(model, batch)

    trainer.batch_loss = record  # type: ignore[method-assign]
    trainer.run()
    every = processes.gathered(taken)
    if processes.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}, folder / "w")
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "taken": [[part.get(epoch, []) for part in every] for epoch in range(EPOCHS)],
        "rows": Predictor(HeadModule(student, lab.task.head), "fp32").rows(split, batch_size=5).tolist(),
    }


def begin_extraction(lab: Lab, folder: Path, batches: int) -> None:
    """Extract, and end each process after a number of batches."""
    done: list[int] = []

    def advance(examples: int) -> None:
        done.append(examples)
        if len(done) == batches:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        extract(
            lab.teacher,
            lab.task,
            lab.train,
            SUPERSET,
            folder,
            **extraction(advance, batch_size=4, shard_bytes=SHARD),
        )


def run_trial(lab: Lab, folder: Path, die_at: int | None = None) -> None:
    """Run a trial with dropout, or until a step at which all processes fail."""
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            raise KeyboardInterrupt

    lab.trial(folder, kind="narrow", run=RunOptions("fp32", accumulate=2), progress=Calls(advance), **RESUMED)


def command(*words: object) -> None:
    """Run ``hskd`` with these arguments."""
    app([str(word) for word in words], standalone_mode=False)


def commands(base: Path, task: list[str], out: Path) -> None:
    """Run all commands, from a body to a trial. Each step uses one process's result of the step before."""
    made = base / "made"  # the results of one process
    command("teacher", "--model", base / "body", "--epochs", 2, "--lr", 3e-3, "--out", out / "teacher", *task)
    shared = ["--teacher", made / "teacher", *task]
    if out == made:
        command("student", *shared, "--layers", 2, "--heads", 2, "--ffn", 24, "--out", out / "student")
    command("store", "extract", *shared, "--precision", "fp32", "--out", out / "store")
    command(*distill(base, task, out))


def distill(base: Path, task: list[str], out: Path) -> list[object]:
    """Return the command words that distil into ``out``."""
    rates = ["--hsk-epochs", 2, "--prediction-epochs", 2, "--hsk-lr", 1e-3, "--prediction-lr", 1e-3]
    made, spec = base / "made", "2l_3t_0.5w,precision=fp32"
    shared = ["--student", made / "student", "--store", made / "store", "--spec", spec, *rates, *task]
    return ["distill", *shared, "--out", out / "trial"]


def everything(lab: Lab, base: Path, task: list[str], out: Path) -> None:
    """Run everything in which two processes are compared with one."""
    found: dict[str, Any] = {
        f"{stage} {accumulate}": train(lab, stage, accumulate, out / f"{stage} {accumulate}")
        for stage in STAGES
        for accumulate in (1, 2)
    }
    seed_training(7)
    found["draws"] = processes.gathered(torch.rand(1).item())
    if processes.is_main():
        (out / "found.json").write_text(json.dumps(found))
    for name in ("whole", "begun"):  # "begun" was begun by another number of processes
        extract(lab.teacher, lab.task, lab.train, SUPERSET, out / name, ExtractOptions(batch_size=4, shard_bytes=SHARD))
    commands(base, task, out)


def launched(what: str, root: str, data: str, base: str, out: str, *task: str) -> None:
    """Run the work of a launched process."""
    torch.set_num_threads(1)
    gc.freeze()
    if what == "fail":
        compute_loss = StageTrainer.compute_loss

        def fail(self: StageTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
            if processes.rank() == 1 and self.state.global_step == 1:
                raise HskdError("this process has had enough")
            return compute_loss(self, *args, **kwargs)

        StageTrainer.compute_loss = fail  # type: ignore[method-assign]
        sys.argv = ["hskd", "teacher", "--model", str(Path(base) / "body"), "--out", str(Path(out) / "teacher"), *task]
        main()
    processes.start(CPU)
    lab = Lab.open(Path(root), Path(data))
    everything(lab, Path(base), list(task), Path(out))
    begin_extraction(lab, Path(out) / "killed", batches=7)
    run_trial(lab, Path(out) / "undisturbed")
    try:
        run_trial(lab, Path(out) / "resumed", die_at=20)  # in the prediction stage, after its first epoch
    except KeyboardInterrupt:
        run_trial(lab, Path(out) / "resumed")
    processes.stop()


if __name__ == "__main__":
    launched(*sys.argv[1:])
