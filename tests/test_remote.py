"""Stores and other artifacts at URLs: pushed, fetched, verified, resumed, and never mixed up."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from conftest import make_bert
from safetensors.torch import save_file
from support.tiny_store import SHARDS, make_store
from transformers import BertTokenizerFast

from hskd import remote
from hskd.artifact_gc import artifacts
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.progress import Silent
from hskd.remote.contents import CHECKSUMS, UPLOAD
from hskd.store.reader import Store
from hskd.store_format.layout import MANIFEST, shard_name
from hskd.students import load_student
from hskd.teachers.loading import resolve_model


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place at a URL."""
    name = uuid.uuid4().hex
    yield f"memory://{name}/a/b" if request.param == "memory" else f"file://{tmp_path}/{name}/a/b"
    if request.param == "memory":
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def files(url: str) -> dict[str, bytes]:
    """Return the contents of every file at ``url``."""
    system, root = fsspec.core.url_to_fs(url)
    return {path[len(root) + 1 :]: system.cat_file(path) for path in system.find(root)}


def put(url: str, content: bytes | None) -> None:
    """Write a remote file, or remove it."""
    system, path = fsspec.core.url_to_fs(url)
    if content is None:
        system.rm_file(path)
    else:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, content)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


class Steps(Silent):
    """Counts copied files, and dies before file number ``most`` + 1."""

    def __init__(self, most: int = 99) -> None:
        self.most, self.done, self.planned = most, 0, 0

    def begin(self, title: str, total: int) -> None:
        self.planned = total

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        if self.done == self.most:
            raise KeyboardInterrupt


# ---- stores


def test_push_and_open(store: Store, url: str, tmp_path: Path) -> None:
    remote.publish(store.folder, url)
    assert set(files(url)) == {MANIFEST, *map(shard_name, range(SHARDS))}
    opened = Store.open(url, tmp_path / "work")
    assert opened.manifest == store.manifest
    assert opened.folder.parent == tmp_path / "work" / "remote"
    opened.verify()
    assert opened.example_ids.tolist() == store.example_ids.tolist()
    rows = opened.rows(store.example_ids)
    assert torch.equal(opened.states(rows).hidden[1], store.states(rows).hidden[1])

    # The second time nothing is copied, and the cache lists the store.
    steps = Steps()
    assert remote.fetch(url + "/", tmp_path / "work", steps) == opened.folder and steps.planned == 0
    (listed,) = artifacts(tmp_path / "work")
    assert listed.kind == "remote" and listed.recipe["url"] == url and listed.finished
    remote.publish(store.folder, url, steps)
    assert steps.planned == 0
    assert remote.verify(url).manifest == store.manifest
    assert remote.contents_of(url).manifest == store.manifest


def test_a_damaged_shard_is_refused_and_not_kept(store: Store, url: str, tmp_path: Path) -> None:
    remote.publish(store.folder, url)
    bad = f"{url}/{shard_name(1)}"
    content = files(url)[shard_name(1)]
    for damaged, said in ((flipped(content), "its SHA-256 is"), (content[:-1], f"bytes where {len(content)}")):
        put(bad, damaged)
        for read in (lambda: Store.open(url, tmp_path / "work"), lambda: remote.verify(url)):
            with pytest.raises(CorruptionError, match=f"{bad}: .*{said}"):
                read()
        kept = [path for path in (tmp_path / "work").rglob("*") if path.is_file() and "shard" in path.name]
        assert [path.name for path in kept] == [shard_name(0)]  # which is complete
        assert [artifact.finished for artifact in artifacts(tmp_path / "work")] == [False]
    put(bad, content)
    Store.open(url, tmp_path / "work").verify()


def test_a_killed_fetch_goes_on(store: Store, url: str, tmp_path: Path) -> None:
    remote.publish(store.folder, url)
    with pytest.raises(KeyboardInterrupt):
        remote.fetch(url, tmp_path, Steps(2))
    (partial,) = (tmp_path / "remote").glob("*.partial")
    (partial / f".{shard_name(2)}.abcd").write_bytes(b"half of it")
    steps = Steps()
    folder = remote.fetch(url, tmp_path, steps)
    assert (steps.planned, steps.done) == (1, 1)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *map(shard_name, range(SHARDS))}
    Store.open(folder).verify()


def test_what_the_cache_lost_is_fetched_again(store: Store, url: str, tmp_path: Path) -> None:
    remote.publish(store.folder, url)
    folder = remote.fetch(url, tmp_path)
    (folder / shard_name(0)).unlink()
    (folder / shard_name(2)).write_bytes(b"short")
    steps = Steps()
    assert remote.fetch(url, tmp_path, steps) == folder and steps.done == 2
    Store.open(folder).verify()


def test_another_store_at_the_url_is_noticed(store: Store, url: str, tmp_path: Path) -> None:
    remote.publish(store.folder, url)
    first = Store.open(url, tmp_path / "work")
    other = make_store(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match=f"{url}: holds something else than {other.folder}"):
        remote.publish(other.folder, url)
    assert files(url)[MANIFEST] == (store.folder / MANIFEST).read_bytes()
    for path in other.folder.iterdir():
        put(f"{url}/{path.name}", path.read_bytes())
    second = Store.open(url, tmp_path / "work")
    assert second.folder != first.folder and second.manifest == other.manifest
    second.verify()
    Store.open(first.folder).verify()


@pytest.mark.parametrize("change", [b"{", b"[]", None, {"examples": 7}, {"format": 1}])
def test_a_damaged_manifest(store: Store, url: str, tmp_path: Path, change: object) -> None:
    remote.publish(store.folder, url)
    content = json.loads(files(url)[MANIFEST])
    changed = json.dumps(content | change).encode() if isinstance(change, dict) else change
    put(f"{url}/{MANIFEST}", changed)  # type: ignore[arg-type]
    with pytest.raises(HskdError, match=MANIFEST):
        Store.open(url, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_killed_push_goes_on_and_nobody_reads_half_of_it(store: Store, url: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        remote.publish(store.folder, url, Steps(2))
    assert set(files(url)) == {UPLOAD, shard_name(0), shard_name(1)}
    with pytest.raises(HskdError, match=f"{url}: its upload was not finished"):
        Store.open(url, tmp_path / "work")
    # A store of the same shape has shards of the same size, which must not count as its own.
    other = make_store(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="the beginning of another upload"):
        remote.publish(other.folder, url)
    put(f"{url}/{shard_name(1)}", b"half")
    steps = Steps()
    remote.publish(store.folder, url, steps)
    assert (steps.planned, steps.done) == (2, 2)
    assert set(files(url)) == {MANIFEST, *map(shard_name, range(SHARDS))}
    remote.verify(url)


def test_a_lost_shard_is_pushed_again(store: Store, url: str) -> None:
    remote.publish(store.folder, url)
    put(f"{url}/{shard_name(1)}", None)
    with pytest.raises(HskdError, match=f"{url}/{shard_name(1)}: no such file"):
        remote.verify(url)
    steps = Steps()
    remote.publish(store.folder, url, steps)
    assert steps.done == 1
    remote.verify(url)


def test_what_is_damaged_here_is_not_pushed(store: Store, url: str, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path / "copy")
    shard = tmp_path / "copy" / shard_name(1)
    shard.write_bytes(flipped(shard.read_bytes()))
    with pytest.raises(CorruptionError, match=f"{shard}: is not what was written there"):
        remote.publish(tmp_path / "copy", url)
    assert MANIFEST not in files(url)


def test_other_files_at_the_url(store: Store, url: str) -> None:
    put(f"{url}/thesis.txt", b"all my work")
    with pytest.raises(HskdError, match=f"{url}: other files lie there"):
        remote.publish(store.folder, url)
    assert files(url) == {"thesis.txt": b"all my work"}


def test_pull(store: Store, url: str, tmp_path: Path) -> None:
    remote.publish(store.folder, url)
    folder = tmp_path / "pulled"
    with pytest.raises(KeyboardInterrupt):
        remote.pull(url, folder, Steps(1))
    assert not folder.exists()
    steps = Steps()
    assert remote.pull(url, folder, steps) == folder and steps.done == SHARDS - 1
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *map(shard_name, range(SHARDS))}
    Store.open(folder).verify()
    remote.pull(url, folder)  # already exists
    (folder / shard_name(0)).write_bytes(b"mine")
    with pytest.raises(MismatchError, match=f"{folder}: holds something else than {url}"):
        remote.pull(url, folder)
    other = make_store(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="holds something else"):
        remote.pull(url, other.folder)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "plan.json").write_text("{}")
    with pytest.raises(MismatchError, match=r"new\.partial: holds the beginning of something else"):
        remote.pull(url, tmp_path / "new")


# ---- teachers, students, trials


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("models") / "student"
    make_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_folder(model_folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.publish(model_folder, url)
    names = {path.name for path in model_folder.iterdir()}
    assert set(files(url)) == names | {CHECKSUMS}
    monkeypatch.chdir(tmp_path)
    student = load_student(url)
    assert torch.equal(student.classifier.weight, load_student(model_folder).classifier.weight)
    folder = Path(resolve_model(url))
    assert folder.is_relative_to("work/remote") and {path.name for path in folder.iterdir()} == names
    remote.publish(folder, url)  # the same again
    remote.verify(url)

    weights = files(url)["model.safetensors"]
    put(f"{url}/model.safetensors", flipped(weights))
    with pytest.raises(CorruptionError, match=f"{url}/model.safetensors: its SHA-256"):
        remote.fetch(url, tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*model.safetensors*"))
    shutil.copytree(model_folder, tmp_path / "changed")
    save_file({"w": torch.ones(1)}, tmp_path / "changed" / "model.safetensors")
    with pytest.raises(MismatchError, match="holds something else"):
        remote.publish(tmp_path / "changed", url)


def test_a_model_folder_that_was_copied_there_otherwise(model_folder: Path, url: str, tmp_path: Path) -> None:
    for path in model_folder.iterdir():
        put(f"{url}/{path.name}", path.read_bytes())
    folder = remote.fetch(url, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files(url)
    assert remote.fetch(url, tmp_path) == folder
    assert remote.pull(url, tmp_path / "pulled") == remote.pull(url, tmp_path / "pulled")
    put(f"{url}/model.safetensors", flipped(files(url)["model.safetensors"]))
    assert remote.fetch(url, tmp_path) != folder
    with pytest.raises(HskdError, match=f"has no {CHECKSUMS}"):
        remote.verify(url)


def test_a_trial_goes_without_the_store_it_derived(store: Store, url: str, tmp_path: Path) -> None:
    trial = tmp_path / "trial"
    (trial / "student").mkdir(parents=True)
    (trial / "student" / "config.json").write_text("{}")
    shutil.copytree(store.folder, trial / "store")
    (trial / ".store.lock").touch()
    with pytest.raises(HskdError, match="is not a finished store, teacher, student or trial"):
        remote.publish(trial, url)
    (trial / "result.json").write_text("{}")
    remote.publish(trial, url)
    assert set(files(url)) == {CHECKSUMS, "result.json", "student/config.json"}
    assert (remote.fetch(url, tmp_path / "work") / "student" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "c:/escaped"])
def test_no_file_is_written_outside_the_copy(url: str, tmp_path: Path, name: str) -> None:
    listed = {"files": {name: {"bytes": 1, "sha256": "0" * 64}}}
    put(f"{url}/{CHECKSUMS}", json.dumps(listed | {"checksum": fingerprint(listed)}).encode())
    with pytest.raises(CorruptionError, match="which is not below it"):
        remote.fetch(url, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b'{"files": {}, "checksum": "0"}'])
def test_a_damaged_list(url: str, tmp_path: Path, content: bytes) -> None:
    put(f"{url}/{CHECKSUMS}", content)
    with pytest.raises(CorruptionError, match=f"{url}/{CHECKSUMS}"):
        remote.fetch(url, tmp_path)


# ---- URLs that cannot be reached


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere", "there is no store, teacher, student or trial"),
        ("file:///nowhere/at/all", "there is no store, teacher, student or trial"),
        ("gopher://host/store", "Protocol not known: gopher"),
        ("file:///dev/null/store", "cannot be read: NotADirectoryError"),
    ],
)
def test_nothing_there(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=f"{url}.*: {said}"):
        Store.open(url, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    error = "Install no_such_package to read elsewhere"
    fsspec.register_implementation("elsewhere", "no_such_package.Files", clobber=True, errtxt=error)
    with pytest.raises(HskdError, match="not installed: Install no_such_package"):
        Store.open("elsewhere://bucket/store", tmp_path)


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(HskdError) as error:
        remote.fetch("memory://me:secret@host/store", tmp_path)
    assert "secret" not in str(error.value)
