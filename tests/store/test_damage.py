"""A damaged store is rejected or reads as written. It never returns other values or raises a raw exception."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from store.conftest import Hskd, Setting
from support.mutations import attack, same, times
from support.shards import rewritten

from hskd import hashing
from hskd.distill.source import StoreSource
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.selectors import PRECISION
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.reader import Store
from hskd.store_format.layout import MANIFEST, TARGET, shard_name

DERIVED_SHARD = 2**11
SPECS = {
    "fp32": "2l_3t_0.1w,precision=fp32",  # a bit mask of neurons
    "fp16": "2l_3t_0.05w",  # indices of neurons
    "bf16": "all_all_0.3w,length=attention_no_sep,precision=bf16",
    "int8": "1l_4t_0.5w,width=uniform,length=left,precision=int8",  # the same neurons for every token
    "int4": "2l_3t_0.2w,precision=int4",
    "int2": "2l_all_0.3w,precision=int2",
    "pca": "2l_3t_0.1w,width=pca",
    "pool": "2l_2t_0.2w,length=pool,width=uniform",
}


@pytest.fixture(scope="module")
def stores(superset: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """A superset, and a derived store of every precision, with several shards each."""
    root = tmp_path_factory.mktemp("stores")
    derived = {
        name: derive(superset, HSKSpec.parse(text), 2, root / name, shard_bytes=DERIVED_SHARD)
        for name, text in SPECS.items()
    }
    assert set(SPECS) >= set(PRECISION)
    assert all(len(store.manifest.shards) > 1 for store in derived.values())
    return {"superset": superset, **derived}


def contents(store: Store) -> dict[str, Any]:
    """Return everything that a store holds."""
    rows = np.arange(len(store))
    held: dict[str, Any] = {
        "ids": store.example_ids,
        "lengths": store.lengths,
        "counts": store.counts,
        "tokens": store.token_ids(rows),
        "targets": store.targets(rows),
        "manifest": store.manifest.fingerprint,
        "special": dict(store.manifest.special_ids),
    }
    if store.manifest.kind == "superset":
        states = store.states(rows)
        return held | {"hidden": dict(states.hidden), "attention": dict(states.attention)}
    kept = store.kept(rows)
    return held | {"values": kept.values, "positions": kept.positions, "neurons": kept.neurons, "layers": kept.layers}


def read(folder: Path) -> dict[str, Any]:
    return contents(Store.open(folder))


@pytest.mark.torture
@pytest.mark.parametrize("name", ["superset", *SPECS])
def test_a_damaged_store_is_refused_or_reads_as_written(stores: dict[str, Store], tmp_path: Path, name: str) -> None:
    outcome = attack(stores[name].folder, tmp_path, read, times(40 if name == "superset" else 14))
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.refused.total() > 0.7 * outcome.count


def flip_signs(path: Path) -> None:
    """Change only the signs of the logits."""
    size, arrays = path.stat().st_size, load_file(path)
    arrays = {name: -array if name == TARGET else array.clone() for name, array in arrays.items()}
    path.unlink()
    save_file(arrays, path)
    assert path.stat().st_size == size


@pytest.mark.parametrize("name", ["superset", "fp16"])
def test_whatever_is_read_first_is_refused(stores: dict[str, Store], tmp_path: Path, name: str) -> None:
    """Shards are checked when they are first read, in each way of reading."""
    folder = shutil.copytree(stores[name].folder, tmp_path / "store")
    entry = stores[name].manifest.shards[1]
    flip_signs(folder / entry.file)
    store = Store.open(folder)
    first = np.arange(stores[name].manifest.shards[0].examples)
    inside = np.array([len(first)])
    values = store.states if name == "superset" else store.kept
    for read_rows in (values, store.targets, store.token_ids, store.tokens, store.require_whole):
        read_rows(first)
        with pytest.raises(
            CorruptionError, match=rf"{entry.file}: its SHA-256 is not the one .* delete it and make it again"
        ):
            read_rows(inside)
    with pytest.raises(CorruptionError, match=entry.file):
        store.rows(np.array([0]))  # looks up an id that does not exist
    with pytest.raises(CorruptionError, match=entry.file):
        store.verify()


def test_nothing_is_trained_on_a_damaged_store(
    setting: Setting, stores: dict[str, Store], tmp_path: Path, hskd: Hskd
) -> None:
    """The error comes before the first batch, and before workers are forked."""
    for name in ("superset", "fp16"):
        folder = shutil.copytree(stores[name].folder, tmp_path / name)
        flip_signs(folder / shard_name(1))
        with pytest.raises(CorruptionError, match=f"{name}/{shard_name(1)}"):
            StoreSource(Store.open(folder), setting.train, 2)
    with pytest.raises(CorruptionError, match=f"superset/{shard_name(1)}"):
        derive(Store.open(tmp_path / "superset"), HSKSpec.parse("1l_1t_0.1w"), 2, tmp_path / "derived")
    assert not (tmp_path / "derived").exists()
    extension = (
        "store",
        "extract",
        "--teacher",
        setting.teacher_folder,
        "--extend",
        tmp_path / "superset",
        "--dtype",
        "fp32",
    )
    code, _, err = hskd(*extension, "--out", tmp_path / "larger", *setting.options)
    assert code == 2 and f"superset/{shard_name(1)}" in err and "Traceback" not in err
    assert not (tmp_path / "larger").exists()
    code, _, err = hskd("knowledge", tmp_path / "superset", "--out", tmp_path / "views")
    assert code == 2 and f"superset/{shard_name(1)}" in err and "Traceback" not in err


def test_shards_are_read_once_a_process(
    stores: dict[str, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(stores["fp16"].folder, tmp_path / "store")
    read_files: list[str] = []

    def counted(path: Path) -> str:
        read_files.append(path.name)
        return file_sha256(path)

    right = contents(stores["fp16"])
    monkeypatch.setattr(hashing, "file_sha256", counted)
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)  # the copy is new, so its state counts as unsettled
    shards = [entry.file for entry in stores["fp16"].manifest.shards]
    store = Store.open(folder)
    assert not read_files
    for _ in range(2):
        assert same(contents(store), right)
        assert read_files == shards
    assert same(contents(Store.open(folder)), right)
    assert read_files == shards
    flip_signs(folder / shard_name(0))  # no longer known
    with pytest.raises(CorruptionError, match=shard_name(0)):
        contents(Store.open(folder))


def test_a_file_that_has_just_changed_is_not_known(stores: dict[str, Store], tmp_path: Path) -> None:
    """Two changes within one tick of a file system's clock leave a file with the same size and times."""
    folder = shutil.copytree(stores["fp16"].folder, tmp_path / "store")
    whole, path = (folder / shard_name(0)).read_bytes(), folder / shard_name(0)
    for _ in range(50):
        path.write_bytes(whole)
        Store.open(folder).token_ids(np.array([0]))
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptionError):
            Store.open(folder).token_ids(np.array([0]))


def test_a_store_is_pickled(stores: dict[str, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pickled into a process that starts in another folder, and from a relative path."""
    folder = shutil.copytree(stores["int4"].folder, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    store = Store.open("store")
    content = pickle.dumps(store)
    assert len(content) < 10_000  # without values
    monkeypatch.chdir("/")
    again = pickle.loads(content)
    assert again.folder == folder and again.manifest == store.manifest
    right = contents(stores["int4"])
    assert same(contents(again), right)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).kept([0, 1]).values.double().sum().item())"
    code = code.replace("[0, 1]", "__import__('numpy').array([0, 1])")
    there = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert float(there.stdout) == store.kept(np.array([0, 1])).values.double().sum().item()
    shutil.rmtree(folder)
    shutil.copytree(stores["fp16"].folder, folder)
    with pytest.raises(MismatchError, match="the store has changed since it was pickled"):
        pickle.loads(content)


def test_a_pickled_store_knows_what_was_read(
    stores: dict[str, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(stores["fp16"].folder, tmp_path / "store")
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)
    store = Store.open(folder)
    store.require_whole()
    content = pickle.dumps(store)
    monkeypatch.setattr(hashing, "_known", {})  # simulates a process that has read nothing

    def refused(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(hashing, "file_sha256", refused)
    assert same(contents(pickle.loads(content)), contents(store))


# ---- impossible contents with matching checksums


def put(name: str, row: int, value: int) -> Any:
    def change(arrays: dict[str, torch.Tensor]) -> None:
        arrays[name][row] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("superset", put("lengths", 0, 200), "its lengths add up to"),
        ("fp16", put("counts", 0, 200), "its counts add up to"),
        ("fp16", put("positions", 3, 255), "positions beyond the end of their example"),
        ("fp16", put("neurons", 3, 32), "neurons outside the teacher's 32"),
        ("fp32", put("neurons", 3, 255), "neurons outside the teacher's 32, or too few or too many neurons"),
        ("int4", put("neurons", 0, 0), "too few or too many"),
        ("superset", put("token_ids", 5, 200), "token ids that are not among the 200 of the vocabulary"),
        ("superset", lambda arrays: arrays.update(token_ids=arrays["token_ids"][:, None]), "array token_ids"),
        ("superset", lambda arrays: arrays.update(values=arrays["values"][:, :, None]), "array values"),
        ("superset", lambda arrays: arrays.update(values=arrays["values"].half()), "but they take"),
        ("fp16", lambda arrays: arrays.pop("positions"), "array positions"),
        ("fp16", lambda arrays: arrays.update(more=torch.zeros(3)), "array more"),
        ("fp16", lambda arrays: arrays.update(values=arrays["values"].view(torch.bfloat16)), "array values"),
    ],
)
def test_impossible_contents(stores: dict[str, Store], tmp_path: Path, name: str, change: Any, said: str) -> None:
    folder = shutil.copytree(stores[name].folder, tmp_path / "store")
    rewritten(folder, change)
    with pytest.raises(CorruptionError, match=said):
        read(folder)
    with pytest.raises(CorruptionError, match=said):
        Store.open(folder).verify()


@pytest.mark.parametrize("what", [MANIFEST, shard_name(1)])
@pytest.mark.parametrize("to", ["outside", "nothing", "itself", "inside"])
def test_links(stores: dict[str, Store], tmp_path: Path, what: str, to: str) -> None:
    folder = shutil.copytree(stores["fp16"].folder, tmp_path / "store")
    (folder / what).rename(tmp_path / "file" if to == "outside" else folder / "file")
    target = {"outside": tmp_path / "file", "nothing": "/nowhere", "itself": folder / what, "inside": "file"}[to]
    (folder / what).symlink_to(target)
    if to == "inside":
        assert same(read(folder), contents(stores["fp16"]))
        return
    with pytest.raises(HskdError, match=r"leads out of its folder|missing|no store"):
        read(folder)


def test_a_pointer_of_git_lfs_is_named(stores: dict[str, Store], tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    for name in (shard_name(0), MANIFEST):
        folder = shutil.copytree(stores["fp16"].folder, tmp_path / name)
        (folder / name).write_bytes(pointer)
        with pytest.raises(CorruptionError, match=f"{name}: is a pointer of git-lfs .* run git lfs pull"):
            Store.open(folder)
