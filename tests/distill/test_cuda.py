"""On a GPU, training from a store equals training with the teacher. Skipped where there is no GPU."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.distill_lab import Lab, StudentKind, arguments, losses
from support.kept import CPU, same

from hskd.distill.source import KnowledgeSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.fast.capture import Captured
from hskd.progress import Silent
from hskd.runtime import RunOptions
from hskd.selectors import PRECISION, WIDTH
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.store.on_device import PlacedStore, device_for
from hskd.teachers.loading import Teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
CUDA = torch.device("cuda")
SPECS = [
    *(f"2l_3t_0.25w,precision={name}" for name in PRECISION),
    *(f"2l_3t_0.25w,width={name}" for name in WIDTH),
    "2l_3t_0.25w,width=pca,rotate=true,precision=int2",
    "2l_3t_0.2w,width=pq",
    "2l_3t_0.04w",
    "all_all_all",
    "2l_2t_0.25w,length=pool",
    "2l_3t_0.25w_0.25e",
]


@pytest.fixture(scope="module")
def on_cuda(lab: Lab) -> Lab:
    """The test setup with its teacher on the GPU."""
    teacher = Teacher.load(str(lab.root / "teacher"), lab.task)
    teacher.model.to(CUDA)
    return replace(lab, teacher=teacher)


def trace(lab: Lab, kind: StudentKind, source: KnowledgeSource, folder: Path) -> list[float]:
    module = HSKModule(lab.student(kind), lab.teacher.model.config.hidden_size).to(CUDA)
    return losses(HSKTrainer(module, arguments(folder, device=CUDA), lab.train, source))


@pytest.mark.parametrize("kind", ["rosita", "narrow"])
@pytest.mark.parametrize("text", ["all_all_all", "1l_3t_0.1w", "2l_4t_0.25w,width=uniform", "2l_2t_0.5w,length=random"])
def test_hsk_stage(on_cuda: Lab, kind: StudentKind, text: str, tmp_path: Path) -> None:
    spec = HSKSpec.parse(f"{text},precision=fp32")
    online = trace(on_cuda, kind, on_cuda.online(spec), tmp_path)
    assert online[-1] < online[0]
    # The store was made on the CPU, which differs in the last bits.
    assert trace(on_cuda, kind, on_cuda.offline(spec), tmp_path) == pytest.approx(online, rel=1e-3)


@pytest.mark.parametrize("text", SPECS)
def test_a_store_on_the_gpu_gives_the_bits_of_the_store(lab: Lab, tmp_path: Path, text: str) -> None:
    store = derive(lab.superset, HSKSpec.parse(text), 2, tmp_path / "store", shard_bytes=2**11)
    placed, rows = PlacedStore(store, CUDA), store.rows_with_hsk[3:12]
    placed.kept(rows)  # What is computed once for all batches is computed here.
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept, targets = placed.kept(rows), placed.targets(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert kept.values.device.type == targets.device.type == "cuda"
    assert same(kept.to(CPU), store.kept(rows))
    assert torch.equal(targets.cpu(), store.targets(rows))


def test_training_from_a_store_on_the_gpu(lab: Lab, tmp_path: Path) -> None:
    store = derive(lab.superset, HSKSpec.parse("2l_3t_0.25w,width=pca,precision=int4"), 2, tmp_path / "store")
    device = device_for(store, RunOptions("fp32", CUDA), Silent())
    assert device == CUDA
    traces = [trace(lab, "narrow", StoreSource(store, lab.train, 2, place), tmp_path) for place in (None, device)]
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)


def test_prediction_stage(on_cuda: Lab, tmp_path: Path) -> None:
    def trace(source: KnowledgeSource) -> list[float]:
        student = on_cuda.classifier().to(CUDA)
        return losses(PredictionTrainer(student, arguments(tmp_path, device=CUDA), on_cuda.train, source))

    assert trace(on_cuda.offline(HSKSpec())) == pytest.approx(trace(on_cuda.online(None)), rel=1e-3)


def test_a_store_made_on_a_gpu_holds_what_one_made_on_a_cpu_does(on_cuda: Lab, tmp_path: Path) -> None:
    everything = Superset(layers=(0, 1, 2, 3, 4), attention_layers=(1, 2, 3, 4))
    made = extract(on_cuda.teacher, on_cuda.task, on_cuda.train, everything, tmp_path / "superset")
    rows = made.rows(on_cuda.train.ids)
    torch.testing.assert_close(made.targets(rows), on_cuda.superset.targets(rows), rtol=1e-3, atol=1e-3)
    one, other = (store.states(rows) for store in (made, on_cuda.superset))
    for layer, values in one.hidden.items():
        torch.testing.assert_close(values, other.hidden[layer], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("text", ["2l_3t_0.25w", "all_all_all", "2l_all_0.25w,width=pca,precision=int4"])
@pytest.mark.parametrize("online", [False, True])
def test_captured_steps_give_the_losses_of_plain_steps(on_cuda: Lab, tmp_path: Path, text: str, online: bool) -> None:
    spec = HSKSpec.parse(text)
    store = derive(on_cuda.superset, spec, 2, tmp_path / "store")
    traces = []
    for capture in (False, True):
        source = on_cuda.online(spec) if online else StoreSource(store, on_cuda.train, 2, CUDA)
        module = HSKModule(on_cuda.student("narrow"), 32).to(CUDA)
        options = arguments(tmp_path, device=CUDA, capture=capture, max_grad_norm=0.5)
        trainer = HSKTrainer(module, options, on_cuda.train, source)
        traces.append(losses(trainer))
        assert trainer.captures is capture
        if capture:
            assert trainer._captured._graphs  # Some steps were replayed.
    assert traces[1] == pytest.approx(traces[0], rel=1e-3) and traces[0][-1] < traces[0][0]


def test_dropout_differs_between_replays() -> None:
    ones = torch.ones(1000, device=CUDA)
    captured = Captured(lambda values, key: (torch.nn.functional.dropout(values),), CUDA)
    masks = [captured(ones, key=0)[0].clone() for _ in range(6)]
    assert len(captured._graphs) == 1
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(masks, 2))
