"""Copies from and to URLs under kills, damage, full disks and malicious files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.kills import killed_everywhere
from support.mutations import BYTES, attack, times
from support.tiny_store import SHARDS, make_store

from hskd import hashing, remote
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.progress import Silent
from hskd.remote.contents import CHECKSUMS, UPLOAD, local_contents
from hskd.remote.copies import CACHE
from hskd.store.reader import Store
from hskd.store_format.layout import MANIFEST, shard_name


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "store").folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like a model, with one file in a subfolder."""
    folder = tmp_path_factory.mktemp("models") / "model"
    (folder / "more").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "more/words.txt"):
        (folder / name).write_bytes(random.Random(name).randbytes(300))
    return folder


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/there"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- kills


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["store", "model", "model without checksums"])
def test_a_pull_killed_at_any_operation_goes_on(source: Path, model: Path, tmp_path: Path, kind: str) -> None:
    folder = source if kind == "store" else model
    there = tmp_path / "elsewhere" / "artifact"  # outside the watched folder
    if kind == "model without checksums":
        shutil.copytree(folder, there)
    else:
        remote.publish(folder, f"file://{there}")
    killed, step = 0, 1 if kind == "store" else max(1, 3 // times(1))
    for place in killed_everywhere(tmp_path, lambda place: remote.pull(f"file://{there}", place / "copy"), step=step):
        killed += 1
        if (place / "copy").exists():
            assert tree(place / "copy").items() >= tree(folder).items()  # whole
        assert remote.pull(f"file://{there}", place / "copy") == place / "copy"
        assert tree(place / "copy") == tree(folder)
        assert remote.pull(f"file://{there}", place / "copy") == place / "copy"
        assert not (place / "copy.partial").exists()
    assert killed > 15 / step


@pytest.mark.torture
def test_a_fetch_killed_at_any_operation_goes_on(source: Path, tmp_path: Path) -> None:
    there = f"file://{tmp_path}/elsewhere/store"
    remote.publish(source, there)
    killed = 0
    for place in killed_everywhere(tmp_path, lambda place: remote.fetch(there, place), step=max(1, 2 // times(1))):
        killed += 1
        assert tree(remote.fetch(there, place)) == tree(source)
    assert killed > 7


def test_a_push_killed_at_any_operation_goes_on(source: Path, tmp_path: Path) -> None:
    """And no reader sees half of it."""
    killed = 0
    for place in killed_everywhere(tmp_path, lambda place: remote.publish(source, f"file://{place}/there")):
        killed += 1
        try:
            assert tree(remote.fetch(f"file://{place}/there", place / "work")) == tree(source)
        except HskdError as error:
            assert "there is no store" in str(error) or "its upload was not finished" in str(error)
        remote.publish(source, f"file://{place}/there")
        assert tree(place / "there") == tree(source)
    assert killed > 3


@pytest.mark.parametrize("name", [UPLOAD, MANIFEST])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_push_killed_within_a_file_goes_on(source: Path, url: str, tmp_path: Path, name: str, share: float) -> None:
    """This is for file systems where files appear before they are complete, as on a local disk."""
    there = tmp_path / "there"
    if name == MANIFEST:
        remote.publish(source, url)
        content = (there / MANIFEST).read_bytes()
        (there / UPLOAD).write_text(json.dumps({"upload": remote.contents_of(url).fingerprint}))
    else:
        there.mkdir()
        content = json.dumps({"upload": local_contents(source).fingerprint}).encode()
    (there / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(HskdError, match="its upload was not finished"):
        remote.fetch(url, tmp_path / "work")
    remote.publish(source, url)
    assert tree(there) == tree(source)


# ---- damage


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["store", "model"])
def test_a_damaged_cached_copy_is_mended(source: Path, model: Path, url: str, tmp_path: Path, kind: str) -> None:
    folder = {"store": source, "model": model}[kind]
    remote.publish(folder, url)
    right = tree(folder)
    cached = remote.fetch(url, tmp_path / "work")
    assert tree(cached) == right
    key = cached.name

    def read(copy: Path) -> dict[str, bytes]:
        work = tmp_path / "attacked"
        shutil.rmtree(work, ignore_errors=True)
        (work / CACHE).mkdir(parents=True)
        shutil.move(copy, work / CACHE / key)
        found = tree(remote.fetch(url, work))
        (work / CACHE / key).rename(copy)
        return {name: content for name, content in found.items() if name in right}

    kinds = (*BYTES, "swap", "delete", "duplicate")
    copies = tmp_path / "copies"
    copies.mkdir()
    shutil.copytree(cached, copies / key)
    outcome = attack(copies / key, tmp_path / "scratch", read, times(20), kinds=kinds)
    assert outcome.harmless.total() == outcome.count, outcome


def test_a_damaged_copy_is_not_there_already(source: Path, url: str, tmp_path: Path) -> None:
    remote.publish(source, url)
    folder = remote.pull(url, tmp_path / "copy")
    shard = folder / shard_name(1)
    content = shard.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], b""):
        shard.write_bytes(damaged)
        with pytest.raises(MismatchError, match=r"copy: holds something else than .* or a damaged copy .* delete"):
            remote.pull(url, folder)
        assert shard.read_bytes() == damaged  # a folder of the user is not changed
    shard.write_bytes(content)
    remote.pull(url, folder)


def test_what_is_damaged_between_a_kill_and_the_next_pull_is_fetched_again(
    source: Path, url: str, tmp_path: Path
) -> None:
    remote.publish(source, url)

    class Stop(Exception):
        pass

    class Two(Silent):
        done = 0

        def advance(self, steps: int = 1) -> None:
            self.done += 1
            if self.done == 2:
                raise Stop

    with pytest.raises(Stop):
        remote.pull(url, tmp_path / "copy", Two())
    shard = tmp_path / "copy.partial" / shard_name(0)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert tree(remote.pull(url, tmp_path / "copy")) == tree(source)


@pytest.mark.parametrize("read", [remote.pull, remote.fetch])
def test_wrong_sizes_and_checksums_are_refused(
    source: Path, url: str, tmp_path: Path, read: Callable[..., Path]
) -> None:
    remote.publish(source, url)
    shard = tmp_path / "there" / shard_name(1)
    content = shard.read_bytes()
    for damaged, said in (
        (content[:-1], rf"{len(content) - 1} bytes where {len(content)} were written"),
        (content + b"more", rf"more than {len(content)} bytes where {len(content)} were written"),
        (content[:-1] + bytes([content[-1] ^ 1]), "its SHA-256 is"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=f"{shard_name(1)}: {said}"):
            read(url, tmp_path / "copy")
        assert not list(tmp_path.glob(f"copy*/**/{shard_name(1)}*"))
        assert not (tmp_path / "copy").is_dir() or read is remote.fetch


# ---- malicious files


class Endless(MemoryFileSystem):
    """Claims that every file has 5 bytes, but never ends."""

    protocol = "endless"
    given = 0
    files: tuple[str, ...] = ()

    class _File:
        def read(self, size: int = -1) -> bytes:
            assert 0 <= size < 2**27, "asks for all of it"
            Endless.given += size
            assert Endless.given < 2**28, "a file without an end is read to its end"
            return b"x" * size

        def __enter__(self) -> Endless._File:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if path.rpartition("/")[2] not in self.files:
            raise FileNotFoundError(path)
        return self._File()

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        with self.open(path) as file:
            return file.read()

    def find(self, path: str, *_: Any, **__: Any) -> dict[str, dict[str, Any]]:
        return {f"{path}/{name}": {"name": name, "size": 5, "type": "file"} for name in self.files}

    def checksum(self, path: str) -> str:
        return "0"


@pytest.fixture
def endless() -> Iterator[type[Endless]]:
    fsspec.register_implementation("endless", Endless, clobber=True)
    Endless.given, Endless.files = 0, ()
    yield Endless


@pytest.mark.parametrize("files", [("config.json", "model.safetensors"), (MANIFEST,), (CHECKSUMS,), (UPLOAD,)])
@pytest.mark.parametrize("read", [remote.pull, remote.fetch])
def test_a_file_without_an_end(
    endless: type[Endless], tmp_path: Path, files: tuple[str, ...], read: Callable[..., Path]
) -> None:
    """No more is read than the stated size, and nothing of it is kept."""
    endless.files = files
    with pytest.raises(HskdError, match=r"more than 5 bytes where 5|is larger than any file of that name"):
        read("endless://bucket/model", tmp_path / "copy")
    assert endless.given <= 2 * (64 * 2**20 + 1)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json")]
    assert not left


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "c:/escaped", "a\0b", "\ud800", "", "."]
)
@pytest.mark.parametrize("read", [remote.pull, remote.fetch])
def test_no_file_is_written_outside_the_copy(url: str, tmp_path: Path, name: str, read: Callable[..., Path]) -> None:
    listed = {"files": {name: {"bytes": 1, "sha256": "0" * 64}}}
    (tmp_path / "there").mkdir()
    try:
        checksum = fingerprint(listed)
    except UnicodeEncodeError:
        checksum = "0"
    (tmp_path / "there" / CHECKSUMS).write_text(json.dumps(listed | {"checksum": checksum}))
    with pytest.raises(CorruptionError, match=r"which is not below it|damaged"):
        read(url, tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


def test_no_file_is_written_through_a_link(model: Path, url: str, tmp_path: Path) -> None:
    remote.publish(model, url)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy.partial").mkdir()
    (tmp_path / "copy.partial" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "copy.partial" / UPLOAD).write_text(
        json.dumps({"recipe": fingerprint(remote.contents_of(url).fingerprint)})
    )
    with pytest.raises(HskdError, match=r"copy.partial/more: is a link, and more/words.txt would be written elsewhere"):
        remote.pull(url, tmp_path / "copy")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["store", "manifest", "model", "folder", "nothing"])
def test_push_follows_no_link_out_of_the_folder(source: Path, model: Path, url: str, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("private")
    folder = shutil.copytree(source if kind in ("store", "manifest") else model, tmp_path / "folder")
    if kind in ("store", "manifest"):
        path = folder / (MANIFEST if kind == "manifest" else shard_name(1))
        path.rename(secret / "file")
        path.symlink_to(secret / "file")
    else:
        path = folder / "notes"
        path.symlink_to({"model": secret / "key", "folder": secret, "nothing": "/nowhere"}[kind])
    with pytest.raises(HskdError, match=f"{path}: is a link that leads out of its folder; put the file itself there"):
        remote.publish(folder, url)
    assert not (tmp_path / "there").exists()


def test_push_takes_a_link_within_the_folder(model: Path, url: str, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "folder")
    (folder / "same.txt").symlink_to("more/words.txt")
    remote.publish(folder, url)
    assert tree(remote.pull(url, tmp_path / "copy"))["same.txt"] == (model / "more/words.txt").read_bytes()
    (folder / "again").symlink_to("more")
    with pytest.raises(HskdError, match="again: is a link to a folder"):
        local_contents(folder)


def test_a_copy_is_verified_once_a_process(source: Path, url: str, tmp_path: Path) -> None:
    """A fetched store is not read again for training, once its files have settled."""
    remote.publish(source, url)
    folder = remote.fetch(url, tmp_path / "work")
    read: list[str] = []
    original, settled = hashing.file_sha256, hashing._SETTLED_NS
    try:
        hashing._SETTLED_NS = -1
        hashing.file_sha256 = lambda path: (read.append(path.name), original(path))[1]  # type: ignore[func-returns-value]
        store = Store.open(url, tmp_path / "work")
        assert store.folder == folder and read == [shard_name(i) for i in range(SHARDS)]
        store.require_whole()
        assert len(read) == SHARDS
    finally:
        hashing.file_sha256, hashing._SETTLED_NS = original, settled
