"""Stores of codecs: reproducible, equal to online selection, atomic, counted and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from store.conftest import Hskd, Setting

from hskd import remote
from hskd.distill.source import OnlineSource, StoreSource
from hskd.distill.trainer import HSKModule
from hskd.errors import CorruptionError
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.reader import Store
from hskd.store.size import size_of
from hskd.store_format.layout import CODEC
from hskd.tasks import sequential_batches

BASES = ("pca", "pca,rotate=true")
LEARNT = (*BASES, "pq,width.entries=16", "rvq,width.entries=16")


@pytest.mark.parametrize("width", ["projection", *BASES])
def test_online_equals_offline(setting: Setting, superset: Store, tmp_path: Path, width: str) -> None:
    spec = HSKSpec.parse(f"2l_3t_0.25w,length=left,width={width},precision=fp16")
    offline = StoreSource(derive(superset, spec, 2, tmp_path / "derived"), setting.train, 2)
    online = OnlineSource(setting.teacher, setting.train.sep_id, spec, 2)
    online.fit(setting.train, batch_size=7)
    for order in sequential_batches(setting.train.lengths, 16):
        batch = setting.train.collate(order)
        one, other = online.kept(batch), offline.kept(batch)
        assert torch.equal(one.positions, other.positions)
        assert one.basis is not None and other.basis is not None
        torch.testing.assert_close(one.basis.directions, other.basis.directions, rtol=0, atol=2e-3)
        torch.testing.assert_close(one.basis.origin, other.basis.origin, rtol=0, atol=4e-3)
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=2.0**-8 * float(one.values.abs().max()))


@pytest.mark.parametrize("width", ["pq,width.entries=16", "rvq,width.entries=16"])
def test_codes_online_are_nearly_those_offline(setting: Setting, superset: Store, tmp_path: Path, width: str) -> None:
    """A token between two entries may get the other one, because the teacher saw it in another batch."""
    spec = HSKSpec.parse(f"2l_all_0.25w,width={width},precision=fp32")
    offline = StoreSource(derive(superset, spec, 2, tmp_path / "derived"), setting.train, 2)
    online = OnlineSource(setting.teacher, setting.train.sep_id, spec, 2)
    online.fit(setting.train, batch_size=7)
    batch = setting.train.collate(np.arange(64))
    one, other = online.kept(batch), offline.kept(batch)
    assert torch.equal(one.positions, other.positions)
    error = (one.values - other.values).square().mean()
    assert error < 0.02 * (other.values - other.values.mean(0)).square().mean()


@pytest.mark.parametrize("width", LEARNT)
def test_deriving_twice_gives_the_same_bytes(superset: Store, tmp_path: Path, width: str) -> None:
    spec = HSKSpec.parse(f"2l_all_0.25w,width={width}")
    stores = []
    for name, threads in (("one", 1), ("other", 2)):
        torch.set_num_threads(threads)
        stores.append(derive(superset, spec, 2, tmp_path / name))
    one, other = (store.manifest for store in stores)
    assert one.codec is not None and one.codec == other.codec
    assert one.shards == other.shards and one.fingerprint == other.fingerprint


def test_what_is_held_once_is_counted(setting: Setting, superset: Store, tmp_path: Path) -> None:
    for width in LEARNT:
        spec = HSKSpec.parse(f"2l_all_0.25w,width={width}")
        store = derive(superset, spec, 2, tmp_path / width)
        held = store.manifest
        size = size_of(spec, held.shape(2), setting.train.lengths, held.origin.max_length, held.target.array)
        assert held.codec is not None
        arrays = [tensor for shard in store._shards for tensor in shard.values()] + list(store.codec.values())
        assert size.derived_bytes == sum(tensor.nbytes for tensor in arrays)
        assert held.bytes == sum(path.stat().st_size for path in store.folder.glob("*.safetensors"))


def test_damage_is_named(superset: Store, tmp_path: Path) -> None:
    store = derive(superset, HSKSpec.parse("1l_all_0.25w,width=pca"), 2, tmp_path / "derived")
    path = store.folder / CODEC
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match=rf"{CODEC}: its size or SHA-256 is not the one in the manifest"):
        store.verify()
    for change in (lambda: None, path.unlink):
        change()
        with pytest.raises(CorruptionError, match=CODEC):
            Store.open(store.folder)


def test_a_copy_is_whole(superset: Store, tmp_path: Path) -> None:
    store = derive(superset, HSKSpec.parse("1l_all_0.25w,width=pca"), 2, tmp_path / "derived")
    remote.publish(store.folder, (tmp_path / "there").as_uri())
    there = Store.open((tmp_path / "there").as_uri(), tmp_path / "work")
    there.verify()
    assert torch.equal(there.kept(np.arange(5)).values, store.kept(np.arange(5)).values)


def test_from_the_command_line(setting: Setting, superset: Store, tmp_path: Path, hskd: Hskd) -> None:
    out = tmp_path / "derived"
    command = ("store", "derive", superset.folder, "--student-layers", 2, "--out", out)
    code, said, err = hskd(*command, "--spec", "2l_all_0.1w,width=pca,rotate=true,precision=int2")
    assert (code, said) == (0, f"store: {out}\n")
    assert "width=pca learns from 64 examples" in err
    kept = Store.open(out).kept(np.arange(3))
    assert kept.basis is not None and kept.basis.directions.shape == (2, 32, 3)
    code, said, _ = hskd("store", "inspect", out)
    assert code == 0 and "held once for all" in said


def test_the_student_keeps_no_basis(setting: Setting, superset: Store, tmp_path: Path) -> None:
    from conftest import make_bert

    store = derive(superset, HSKSpec.parse("1l_all_0.25w,width=pca"), 2, tmp_path / "derived")
    module = HSKModule(make_bert(hidden_size=16, intermediate_size=16), 32)
    before = set(module.state_dict())
    batch = setting.train.collate(np.arange(4))
    module(
        store.kept(store.rows(setting.train.ids[:4])),
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
    )
    assert set(module.state_dict()) == before
