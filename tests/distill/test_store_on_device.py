"""A store on the device gives the same bits as a store on disk. The device is the CPU here, with the code of a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.calls import Calls
from support.distill_lab import Lab, arguments, losses, weights
from support.kept import CPU, require_same_on_device, same

from hskd.distill.dataset import DistillationDataset
from hskd.distill.losses import hsk_loss
from hskd.distill.source import KnowledgeSource, ShuffledSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import CorruptionError, HskdError
from hskd.runtime import RunOptions, StoreOnDevice
from hskd.selectors import PRECISION, WIDTH
from hskd.selectors.codebook import _entries
from hskd.spec import HSKSpec
from hskd.store.decode import pack_neurons, set_bits, unpack_neurons
from hskd.store.derive import derive
from hskd.store.on_device import PlacedStore, device_for, is_placed, placed_bytes
from hskd.store.reader import Store

META = torch.device("meta")
SMALL_SHARD = 2**11
"""Shard size that splits the stores into several shards."""

SPECS = [
    *(f"2l_3t_0.25w,precision={name}" for name in PRECISION),
    *(f"2l_3t_0.25w,width={name}" for name in WIDTH),
    *(f"2l_3t_0.25w,width={name},precision=bf16" for name in ("pq", "rvq")),
    *(f"2l_3t_0.25w,width=projection,precision={name}" for name in ("int8", "int4")),
    "2l_3t_0.25w,width=pca,rotate=true,precision=int2",
    "2l_3t_0.2w,width=pq,precision=fp32",  # 6 codebooks of 32 neurons: their runs differ in length
    "2l_3t_0.04w",  # one neuron of 32, stored as an index and not as a mask
    "all_all_all",
    "1l_all_0.5w",
    *(f"2l_2t_0.25w,length={name}" for name in ("attention", "left", "random", "norm")),
    "1l_1t_all,length=cls",
    "2l_2t_0.25w,length=pool",
    "2l_3t_0.25w_0.25e",
    "2l_2t_0.25w_0.25e,length=pool,width=pca",
]
TRACED = ["2l_3t_0.25w", "2l_3t_0.25w,width=pca,precision=int4", "1l_2t_0.25w,depth=random", "2l_2t_all,length=pool"]


def made(lab: Lab, folder: Path, text: str) -> Store:
    store = derive(lab.superset, HSKSpec.parse(text), 2, folder / "store", shard_bytes=SMALL_SHARD)
    assert len(store.manifest.shards) > 1
    return store


@pytest.mark.parametrize("text", SPECS)
def test_every_tensor_and_the_loss_are_those_of_the_store(lab: Lab, tmp_path: Path, text: str) -> None:
    store = made(lab, tmp_path, text)
    require_same_on_device(store)
    placed, rows = PlacedStore(store, CPU), store.rows_with_hsk[3:12]
    states = [torch.randn(len(rows), int(store.lengths.max()), 32) for _ in range(3)]
    assert hsk_loss(states, placed.kept(rows)).item() == hsk_loss(states, store.kept(rows)).item()
    assert sum(array.nbytes for array in placed._arrays.values()) <= placed_bytes(store)


@pytest.mark.parametrize("text", SPECS)
def test_no_batch_waits_for_the_device(lab: Lab, tmp_path: Path, text: str) -> None:
    """Tensors on the device meta have shapes and no values, so reading a value back from it is an error."""
    store = made(lab, tmp_path, text)
    placed, rows = PlacedStore(store, META), store.rows_with_hsk[3:12]
    kept, expected = placed.kept(rows), store.kept(rows)
    for name in ("counts", "positions", "values", "neurons"):
        one, other = getattr(kept, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert (one.device, one.shape, one.dtype) == (META, other.shape, other.dtype), name
    assert kept.most == expected.most and kept.layers == expected.layers
    assert placed.targets(rows).shape == store.targets(rows).shape


@pytest.mark.parametrize("text", TRACED)
def test_traces_of_the_hsk_stage_are_equal(lab: Lab, tmp_path: Path, text: str) -> None:
    store = made(lab, tmp_path, text)
    traces = []
    for device in (None, CPU):
        module = HSKModule(lab.student("narrow", dropout=0.1), 32)
        source = StoreSource(store, lab.train, 2, device)
        torch.manual_seed(0)
        traces.append(losses(HSKTrainer(module, arguments(tmp_path, epochs=2), lab.train, source)))
    assert traces[0] == traces[1] and len(traces[0]) == 8


@pytest.mark.parametrize("superset", [False, True])
def test_traces_of_the_prediction_stage_are_equal(lab: Lab, tmp_path: Path, superset: bool) -> None:
    store = lab.superset if superset else made(lab, tmp_path, "1l_3t_0.25w")
    traces = []
    for device in (None, CPU):
        source = StoreSource(store, lab.train, 2, device)
        options = arguments(tmp_path, epochs=2)
        traces.append(losses(PredictionTrainer(lab.classifier("narrow"), options, lab.train, source)))
    assert traces[0] == traces[1] and len(traces[0]) == 8


def test_shuffled_knowledge_is_the_same(lab: Lab, tmp_path: Path) -> None:
    store = made(lab, tmp_path, "2l_3t_0.25w")
    disk, placed = (ShuffledSource(store, lab.train, 2, 0, device) for device in (None, CPU))
    batch = lab.train.collate(range(9))
    assert same(placed.kept(batch), disk.kept(batch))
    assert torch.equal(placed.targets(batch), disk.targets(batch))


def test_worker_processes_read_only_a_store_on_disk(lab: Lab, tmp_path: Path) -> None:
    store = made(lab, tmp_path, "2l_3t_0.25w")
    for device, expected in ((None, True), (CPU, False)):
        for source in (StoreSource(store, lab.train, 2, device), ShuffledSource(store, lab.train, 2, 0, device)):
            assert DistillationDataset(lab.train, source).in_workers is expected


def test_other_examples_than_those_with_knowledge_are_refused(lab: Lab, tmp_path: Path) -> None:
    store = made(lab, tmp_path, "2l_3t_0.25w_0.25e")
    missing = np.setdiff1d(np.arange(64), store.rows_with_hsk)[:1]
    with pytest.raises(HskdError, match="ask for those at rows_with_hsk"):
        PlacedStore(store, CPU).kept(missing)
    with pytest.raises(HskdError, match="derive a spec from it first"):
        PlacedStore(lab.superset, CPU).kept(missing)


def test_a_damaged_shard_is_refused(lab: Lab, tmp_path: Path) -> None:
    folder = made(lab, tmp_path, "2l_3t_0.25w").folder
    shard = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptionError, match=shard.name):
        PlacedStore(Store.open(folder), CPU)


@pytest.mark.parametrize("store_on_device", ["auto", "always", "never"])
def test_a_trial_gives_the_same_student(lab: Lab, tmp_path: Path, store_on_device: StoreOnDevice) -> None:
    reference = lab.trial(tmp_path / "reference")
    lines: list[str] = []
    store = made(lab, tmp_path, "2l_3t_0.5w")
    options = RunOptions("fp32", CPU, store_on_device=store_on_device)
    device = device_for(store, options, Calls(say=lines.append))
    assert (device == CPU) is (store_on_device == "always")
    assert [f"{store.folder}: is placed on cpu (" in line for line in lines] == ([True] if device else [])

    def wrap(source: KnowledgeSource | None) -> KnowledgeSource:
        return StoreSource(store, lab.train, 2, device)

    result = lab.trial(tmp_path / "trial", run=options, wrap=wrap)
    assert weights(tmp_path / "trial") == weights(tmp_path / "reference")
    assert {name: result[name] for name in ("metrics", "settings")} == {
        name: reference[name] for name in ("metrics", "settings")
    }
    assert "store_on_device" not in result


@pytest.mark.parametrize(
    ("choice", "needed", "free", "expected"),
    [
        ("auto", 50, 100, True),
        ("auto", 51, 100, False),
        ("auto", 50, None, False),
        ("always", 100, 100, True),
        ("always", 50, None, True),
    ],
)
def test_where_a_store_goes(choice: StoreOnDevice, needed: int, free: int | None, expected: bool) -> None:
    assert is_placed(choice, needed, free, "cuda:0") is expected


def test_no_room_is_one_line() -> None:
    with pytest.raises(HskdError) as refused:
        is_placed("always", 3 * 2**30, 2**30, "cuda:0")
    assert str(refused.value) == (
        "--store-on-device always: the store takes 3.0 GiB, and cuda:0 has 1.0 GiB free; use auto or never, or keep "
        "less HSK (--spec)."
    )


@pytest.mark.parametrize("width", [1, 7, 8, 33, 768])
def test_masks_are_unpacked_alike_on_every_device(width: int) -> None:
    """A CPU unpacks with numpy, and a GPU with :func:`set_bits`."""
    count = -(-width // 3)
    neurons = torch.rand(5, 2, width).argsort(dim=2)[..., :count].sort(dim=2).values
    packed = pack_neurons(neurons, width, as_mask=True).unflatten(1, (2, -1))
    assert torch.equal(unpack_neurons(packed, width, count), neurons)
    assert torch.equal(set_bits(packed, width, count), neurons)


def test_codes_are_looked_up_alike_on_every_device() -> None:
    """A CPU takes rows with numpy, and a GPU by indexing."""
    table, places = torch.randn(64, 5), torch.randint(64, (7, 2, 3))
    assert torch.equal(_entries(table, places), table[places])
