"""The trainers of the two stages: losses, stopping, clipping, accumulation, reporting, precision."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.distill_lab import KINDS, Lab, StudentKind, arguments, losses
from torch import nn
from transformers import Trainer

from hskd.distill.projection import PROJECTION_FILE
from hskd.distill.source import KnowledgeSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import HskdError
from hskd.spec import HSKSpec
from hskd.students import load_student
from hskd.students.general.settings import GeneralSettings
from hskd.tasks import BatchDataset
from hskd.teachers.settings import TeacherSettings
from hskd.training import GoldTrainer, StageRecipe, StageSettings, StageTrainer, last_checkpoint
from hskd.trials.settings import DistillSettings
from hskd.trials.stages import RunOptions

WIDTH = 32
SPEC = HSKSpec.parse("all_3t_0.5w,precision=fp32")
STAGES = ("hsk", "prediction", "gold")


def make_trainer(
    stage: str,
    lab: Lab,
    folder: Path,
    *,
    kind: StudentKind = "rosita",
    dropout: float = 0.0,
    source: KnowledgeSource | None = None,
    examples: int = 64,
    **changes: Any,
) -> StageTrainer:
    split = lab.train.first(examples)
    source = source or lab.offline(SPEC)
    settings = arguments(folder, **changes)
    if stage == "hsk":
        return HSKTrainer(HSKModule(lab.student(kind, dropout), WIDTH), settings, split, source)
    if stage == "prediction":
        return PredictionTrainer(lab.classifier(kind, dropout), settings, split, source)
    return GoldTrainer(lab.classifier(kind, dropout), settings, split)


def loss_of(trainer: StageTrainer, rows: list[int], pad_to: int | None = None) -> float:
    """Return the loss of a batch of these rows, which may be padded further."""
    dataset = trainer.dataset
    split, dataset.split = dataset.split, replace(dataset.split, pad_to=pad_to)
    batch = dataset.__getitems__(rows)
    dataset.split = split
    assert batch["input_ids"].shape[1] == (pad_to or split.lengths[rows].max())
    return trainer.batch_loss(trainer.model, batch).item()


@pytest.mark.parametrize("kind", [TeacherSettings, DistillSettings, GeneralSettings])
def test_a_recipe_has_the_settings_and_options_that_it_is_made_of(kind: type[StageSettings]) -> None:
    settings = kind(batch_size=24, seed=3, warmup=0.2, weight_decay=0.03)  # type: ignore[call-arg]
    options = RunOptions("bf16", torch.device("cpu"), checkpoints=False, accumulate=4)
    recipe = StageRecipe.of(settings, options, epochs=2, learning_rate=1e-3, checkpoints=True, first_epoch=5)
    assert recipe == StageRecipe(
        epochs=2,
        learning_rate=1e-3,
        schedule="linear",
        batch_size=24,
        seed=3,
        dtype="bf16",
        device=torch.device("cpu"),
        warmup_steps=0.2,
        weight_decay=0.03,
        checkpoints=True,
        report_to="none",
        accumulate=4,
        first_epoch=5,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["online", "offline"])
def test_padding_does_not_change_a_loss(lab: Lab, kind: StudentKind, stage: str, where: str, tmp_path: Path) -> None:
    source = lab.online(SPEC) if where == "online" else lab.offline(SPEC)
    trainer = make_trainer(stage, lab, tmp_path, kind=kind, source=source)
    rows = [0, 3, 17, 40, 63]
    loss = loss_of(trainer, rows)
    assert loss_of(trainer, rows, pad_to=48) == pytest.approx(loss, rel=1e-5)
    alone = [loss_of(trainer, [row]) for row in rows]
    assert sum(alone) / len(rows) == pytest.approx(loss, rel=1e-5)  # a mean over examples of any length


@pytest.mark.parametrize(
    ("rates", "stage"), [({"hsk_lr": 1e20}, "HSK stage"), ({"prediction_lr": 1e20}, "prediction stage")]
)
def test_an_absurd_learning_rate_stops_the_trial(lab: Lab, rates: dict[str, float], stage: str, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=rf"^{stage}: the (loss|gradient norm) is (nan|inf) at step [23]\. Lower the"):
        lab.trial(tmp_path, **rates)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_stops_at_its_step(lab: Lab, stage: str, tmp_path: Path) -> None:
    trainer = make_trainer(stage, lab, tmp_path, accumulate=2)
    with torch.no_grad():
        next(trainer.model.parameters())[2] = float("inf")  # [CLS], which is in every example
    with pytest.raises(HskdError, match=rf"^{trainer.stage}: the loss is nan at step 1\."):
        trainer.train()


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_gradients_are_those_of_the_whole_batch(lab: Lab, stage: str, tmp_path: Path) -> None:
    # With 32 examples, an epoch is one update: one batch of 32, whole or in two parts.
    shared = {"examples": 32, "epochs": 6, "optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 5.0}
    whole = make_trainer(stage, lab, tmp_path, batch_size=32, **shared)
    parts = make_trainer(stage, lab, tmp_path, batch_size=32, accumulate=2, **shared)
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    expected = losses(whole)
    assert len(expected) == 6 and expected[-1] < expected[0]
    assert losses(parts) == pytest.approx(expected, rel=1e-4)
    assert parts.state.global_step == whole.state.global_step == 6
    found = parts.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    moved = max(float((found[name] - before[name]).abs().max()) for name in before)
    assert moved > 1e-2


def test_tensorboard(lab: Lab, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lab.trial(tmp_path, run=RunOptions("fp32", report_to="tensorboard"), hsk_epochs=5, prediction_epochs=5)
    events = sorted(tmp_path.rglob("events.out.tfevents.*"))
    assert len(events) == 2
    for file in events:
        accumulator = EventAccumulator(str(file)).Reload()
        assert {"train/loss", "train/grad_norm"} <= set(accumulator.Tags()["scalars"])
        # Logged every 10 steps, and after every epoch of 4.
        assert [event.step for event in accumulator.Scalars("train/loss")] == [4, 8, 10, 12, 16, 20]


def test_bf16(lab: Lab, tmp_path: Path) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()

    def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear) and module.out_features != WIDTH:  # only W has WIDTH outputs
            seen.add((module.training, output.dtype))

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        result = lab.trial(tmp_path / "bf16", kind="narrow", run=RunOptions("bf16"))
    finally:
        handle.remove()
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
    exact = lab.trial(tmp_path / "fp32", kind="narrow", run=RunOptions("fp32"))
    assert (result["dtype"], exact["dtype"]) == ("bf16", "fp32")
    for stage in ("hsk", "prediction"):
        found, expected = result["stages"][stage]["last_loss"], exact["stages"][stage]["last_loss"]
        assert found == pytest.approx(expected, rel=0.02) and found != expected
    assert all(tensor.dtype == torch.float32 for tensor in load_student(tmp_path / "bf16" / "student").parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_biases_and_layer_norms_do_not_decay(lab: Lab, kind: StudentKind, stage: str, tmp_path: Path) -> None:
    trainer = make_trainer(stage, lab, tmp_path, kind=kind, weight_decay=0.3)
    groups = trainer.create_optimizer().param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    names = dict(trainer.model.named_parameters())
    assert len(names) == len(decay)
    if stage == "hsk" and kind == "narrow":
        assert "projection.weight" in names
    for name, parameter in names.items():
        free = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if free else 0.3), name


def test_w_only_where_widths_differ(lab: Lab) -> None:
    assert HSKModule(lab.student("rosita"), WIDTH).projection is None
    projection = HSKModule(lab.student("narrow"), WIDTH).projection
    assert projection is not None
    assert (projection.in_features, projection.out_features) == (16, WIDTH)
    assert projection.bias is not None


def test_w_is_drawn_from_the_seed(lab: Lab) -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())  # the state of the generator must not matter
        state = torch.get_rng_state()
        projection = HSKModule(lab.student("narrow"), WIDTH, seed).projection
        assert projection is not None and torch.equal(torch.get_rng_state(), state)
        return projection.weight

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))


def test_w_is_taken_from_the_students_folder(lab: Lab, tmp_path: Path) -> None:
    own = nn.Linear(16, WIDTH)
    drawn = HSKModule(lab.student("narrow"), WIDTH, 0, tmp_path).projection
    save_file(own.state_dict(), tmp_path / PROJECTION_FILE)
    taken = HSKModule(lab.student("narrow"), WIDTH, 0, tmp_path).projection
    assert drawn is not None and taken is not None
    assert torch.equal(taken.weight, own.weight) and torch.equal(taken.bias, own.bias)
    assert not torch.equal(drawn.weight, own.weight)
    assert HSKModule(lab.student("rosita"), WIDTH, 0, tmp_path).projection is None


def test_a_trial_writes_w_beside_the_student_and_another_can_start_from_it(lab: Lab, tmp_path: Path) -> None:
    lab.trial(tmp_path, kind="narrow")
    module = HSKModule(lab.student("narrow"), WIDTH, 0, tmp_path / "student")
    drawn = HSKModule(lab.student("narrow"), WIDTH, 0)
    assert module.projection is not None and drawn.projection is not None
    assert not torch.equal(module.projection.weight, drawn.projection.weight)


def test_the_teachers_dropout_is_off_while_the_student_trains(lab: Lab, tmp_path: Path) -> None:
    batch = lab.train.collate([1, 2, 30])
    source = lab.online(HSKSpec.parse("all_all_all,precision=fp32"))
    assert lab.teacher.model.config.hidden_dropout_prob > 0
    trainer = make_trainer("hsk", lab, tmp_path, source=source, epochs=1)
    first, logits = source.kept(batch), source.targets(batch)
    trainer.train()
    assert trainer.model.training
    lab.teacher.model.train()  # even if other code has switched it to train mode
    assert torch.equal(source.kept(batch).values, first.values)
    lab.teacher.model.train()
    assert torch.equal(source.targets(batch), logits)
    assert not any(parameter.grad is not None for parameter in lab.teacher.model.parameters())


def test_the_students_dropout_is_on(lab: Lab, tmp_path: Path) -> None:
    def trace(dropout: float, folder: Path) -> list[float]:
        module = HSKModule(lab.student("rosita", dropout), WIDTH)
        return losses(HSKTrainer(module, arguments(folder, epochs=1), lab.train, lab.offline(SPEC)))

    assert trace(0.3, tmp_path / "a") != pytest.approx(trace(0.0, tmp_path / "b"), rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_targets_are_read_one_batch_ahead(lab: Lab, stage: str, tmp_path: Path) -> None:
    """While a step computes, the next batch and its targets are already loaded."""
    trainer = make_trainer(stage, lab, tmp_path, epochs=1)
    order: list[str] = []

    class Recorded(BatchDataset):
        def __getitems__(self, rows: list[int]) -> dict[str, Any]:
            order.append("read")
            return dataset.__getitems__(rows)

    dataset, batch_loss = trainer.dataset, trainer.batch_loss
    trainer.dataset = Recorded(dataset.split)
    trainer.batch_loss = lambda model, batch: (order.append("step"), batch_loss(model, batch))[1]  # type: ignore
    trainer.train()
    steps = order.count("step")
    assert order[:3] == ["read", "read", "step"] and order.count("read") == steps


@pytest.mark.parametrize("stage", STAGES)
def test_workers_change_no_bit(lab: Lab, stage: str, tmp_path: Path) -> None:
    """This includes dropout, from epoch to epoch and after a resumption within an epoch."""
    states = []
    for workers in (0, 1, 2):
        folder = tmp_path / str(workers)
        settings = {"epochs": 3, "batch_size": 12, "dataloader_num_workers": workers}
        torch.manual_seed(7)
        saving = {"save_strategy": "steps", "save_steps": 8, "save_total_limit": 3}
        trainer = make_trainer(stage, lab, folder, dropout=0.3, **settings, **saving)
        trainer.run()
        states.append(trainer.model.state_dict())
        shutil.rmtree(folder / "checkpoint-18")
        assert last_checkpoint(folder) == folder / "checkpoint-16"
        torch.manual_seed(8)
        resumed = make_trainer(stage, lab, folder, dropout=0.3, **settings)
        resumed.run()
        states.append(resumed.model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(tensor, states[0][name]) for name, tensor in state.items())


def test_only_a_store_is_read_by_workers(lab: Lab, tmp_path: Path) -> None:
    settings = arguments(tmp_path, dataloader_num_workers=2)
    for source, workers in ((lab.offline(SPEC), 2), (lab.online(SPEC), 0)):
        trainer = HSKTrainer(HSKModule(lab.student(), WIDTH), settings, lab.train, source)
        assert trainer.get_train_dataloader().num_workers == workers


def test_a_store_can_be_sent_to_a_worker(lab: Lab) -> None:
    """This is needed where processes are not forked."""
    source = lab.offline(SPEC)
    again = pickle.loads(pickle.dumps(source))
    batch = lab.train.collate([4, 2, 60])
    assert torch.equal(again.kept(batch).values, source.kept(batch).values)
    assert len(pickle.dumps(source)) < 10_000


def test_no_private_method_of_trainer_is_overridden() -> None:
    public = {"__init__", "compute_loss", "get_train_dataloader", "training_step"}
    for trainer in (StageTrainer, HSKTrainer, PredictionTrainer, GoldTrainer):
        assert {name for name in vars(trainer) if hasattr(Trainer, name) and callable(getattr(Trainer, name))} <= {
            *public, "__doc__", "__module__"
        }  # fmt: skip


def test_a_gradient_that_is_not_a_number_stops(lab: Lab, tmp_path: Path) -> None:
    """Training stops even if the loss is finite, and before a checkpoint holds the step."""
    trainer = make_trainer("gold", lab, tmp_path, checkpoints=True)
    trainer.batch_loss = lambda model, batch: next(model.parameters()).sum().mul(0).sqrt()  # type: ignore
    with pytest.raises(HskdError, match=r"^gold: the gradient norm is nan at step 1\. Lower the learning rate"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
