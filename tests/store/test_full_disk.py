"""A disk that is full at any write gives one line of error, no incomplete results, and the same bytes after a retry."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from store.conftest import SMALL_SHARD, Setting
from support.calls import extraction
from support.mutations import times
from support.small_disk import small_disk_at

from hskd import remote
from hskd.errors import HskdError
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store

Usage = namedtuple("Usage", "total used free")
PAGE = 4096
SPEC = HSKSpec.parse("2l_4t_0.3w")
Write = Callable[[Path], Path]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real disk of 1 MiB."""
    with small_disk_at(tmp_path_factory.mktemp("disk"), "1m") as folder:
        yield folder


@pytest.fixture
def write(request: pytest.FixtureRequest, setting: Setting, superset: Store, tmp_path: Path) -> Write:
    """Return a function that writes a store into a folder, in one of several ways."""

    def derived(folder: Path) -> Path:
        return derive(superset, SPEC, 2, folder, shard_bytes=2**12).folder

    def extended(folder: Path) -> Path:
        torch.set_num_threads(1)
        both = setting.train.followed_by(setting.splits["dev"])
        held = extraction(shard_bytes=SMALL_SHARD, extend=small)
        return extract(setting.teacher, setting.task, both, Superset((1,), ()), folder, **held).folder

    def pulled(folder: Path) -> Path:
        return remote.pull(f"file://{there}", folder)

    if request.param == "extend":  # from another disk, so that its shards are copied
        small = setting.extract(tmp_path / "small", Superset((1,), ()), shard_bytes=SMALL_SHARD)
    if request.param == "pull":
        there = tmp_path / "there"
        remote.publish(derived(tmp_path / "source"), f"file://{there}")
    return {"derive": derived, "extend": extended, "pull": pulled}[request.param]


@pytest.mark.parametrize("write", ["derive", "extend", "pull"], indirect=True)
def test_a_disk_that_is_full_at_any_write(
    small_disk: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests every amount of free space, page by page; every second page without ``HSKD_TORTURE``."""
    usage = shutil.disk_usage
    right = {path.name: path.read_bytes() for path in write(tmp_path / "right").iterdir()}
    refused = 0
    for pages in range(0, 128, max(1, 2 // times(1))):
        store, other = small_disk / "store", small_disk / "other"
        other.write_bytes(bytes(usage(small_disk).free - pages * PAGE))
        # Another process takes the space after our check.
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 0, 2**30))
        try:
            write(store)
        except HskdError as error:
            refused += 1
            assert "\n" not in str(error) and "No space left on device" in str(error), error
            assert not store.exists()
        else:
            other.unlink()
            assert {path.name: path.read_bytes() for path in store.iterdir()} == right
            break
        finally:
            monkeypatch.undo()
        other.unlink()
        write(store)
        assert {path.name: path.read_bytes() for path in store.iterdir()} == right
        Store.open(store).verify()
        shutil.rmtree(store)
    else:
        raise AssertionError("never room enough")
    shutil.rmtree(store)
    assert refused > 2
