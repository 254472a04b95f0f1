"""A run that was killed with SIGKILL resumes and ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store.conftest import SMALL_SHARD, Setting
from support.calls import Calls
from support.kills import killed_everywhere
from support.mutations import attack, times

from hskd.errors import HskdError, MismatchError
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset
from hskd.store.reader import Store
from hskd.store.writer import shard_note
from hskd.store_format.layout import CODEC, MANIFEST, shard_name

SPEC = HSKSpec.parse("2l_4t_0.3w")
DERIVED_SHARD = 2**12
KILLED = -signal.SIGKILL

# Importing the libraries takes seconds, so one process does it and forks a child to kill for every test.
NURSERY = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})"
    + """
import json, os, signal, sys, traceback
from pathlib import Path

import torch
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from support.calls import Calls, extraction
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.tasks import load_task, tokenize
from hskd.teachers.loading import Teacher

teacher_folder, data_folder, tokens = sys.argv[1:]

def work(job):
    torch.set_num_threads(1)
    done = 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def advance(examples):
        nonlocal done
        done += examples
        if job.get("die_after") is not None and done >= job["die_after"]:
            die()

    if job.get("die_at_sync") is not None:
        fsync, syncs = os.fsync, 0

        def last_sync(handle):
            nonlocal syncs
            syncs += 1
            if syncs == job["die_at_sync"]:
                die()
            fsync(handle)

        os.fsync = last_sync
    size = job["shard_bytes"]
    if job["what"] == "extract":
        data = load_task("custom", data_folder, ["sentence"], "mood")
        teacher = Teacher.load(teacher_folder, data.task)
        train = tokenize(data, teacher.tokenizer, Path(tokens))["train"]
        superset = Superset((0, 1, 2), (1, 2))
        given = extraction(advance, batch_size=4, shard_bytes=size)
        extract(teacher, data.task, train, superset, Path(job["folder"]), **given)
    else:
        spec = HSKSpec.parse(job["spec"])
        progress = Calls(advance=advance)
        derive(Store.open(job["superset"]), spec, 2, Path(job["folder"]), shard_bytes=size, progress=progress)
    return done

for line in sys.stdin:
    pids = []
    for i, job in enumerate(json.loads(line)):
        pid = os.fork()
        if not pid:
            try:
                done = work(job)
                Path(f"{job['folder']}.{i}.done").write_text(str(done))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""
)


class Nursery:
    """Runs jobs in parallel processes and returns their exit codes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *jobs: dict[str, Any]) -> list[int]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def nursery(setting: Setting) -> Iterator[Nursery]:
    tokens = setting.teacher_folder.parent / "work" / "tokens"
    arguments = [sys.executable, "-c", NURSERY, str(setting.teacher_folder), str(setting.data_folder), str(tokens)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Nursery(process)


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An uninterrupted extraction."""
    return setting.extract(tmp_path_factory.mktemp("undisturbed") / "store", shard_bytes=SMALL_SHARD, batch_size=4)


@pytest.fixture(scope="module")
def undisturbed_derived(undisturbed: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return derive(undisturbed, SPEC, 2, tmp_path_factory.mktemp("undisturbed") / "derived", shard_bytes=DERIVED_SHARD)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return modification time and inode of every whole shard, by name."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.glob("shard-*")}


def assert_resumed(store: Store, alone: Store, kept: dict[str, tuple[int, int]], computed: int) -> None:
    """Check that ``store`` has the bytes of ``alone``, and that ``kept`` shards of a killed run were not rewritten."""
    assert store.manifest.shards == alone.manifest.shards
    assert store.manifest.fingerprint == alone.manifest.fingerprint
    store.verify()
    now = files(store.folder)
    assert {name: now[name] for name in kept} == kept
    spared = sum(shard.examples for shard in store.manifest.shards if shard.file in kept)
    assert computed == len(store) - spared
    assert {path.name for path in store.folder.iterdir()} == {MANIFEST, *now}
    assert not store.folder.with_name(store.folder.name + ".partial").exists()


def damage_shard(partial: Path) -> None:
    shard = partial / shard_name(1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def swap_shards(partial: Path) -> None:
    first, second = (partial / shard_name(i) for i in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "made_again"),
    [
        (damage_shard, {1}),
        (swap_shards, {0, 1}),
        (lambda partial: (partial / shard_name(0)).write_bytes(b""), {0}),
        (lambda partial: (partial / shard_name(1)).unlink(), {1}),
        (lambda partial: (partial / shard_name(1)).write_bytes((partial / shard_name(1)).read_bytes()[:-9]), {1}),
        (lambda partial: shard_note(partial / shard_name(0)).unlink(), {0}),
        (lambda partial: shard_note(partial / shard_name(1)).write_text("{"), {1}),
        (lambda partial: shard_note(partial / shard_name(0)).replace(shard_note(partial / shard_name(1))), {0, 1}),
        (lambda partial: None, set()),
    ],
)
def test_a_shard_that_is_damaged_before_the_run_goes_on_is_made_again(
    undisturbed: Store, undisturbed_derived: Store, tmp_path: Path, damage: Callable[[Path], Any], made_again: set[int]
) -> None:
    """Such a shard used to become part of the finished store, with a matching checksum."""
    shards = undisturbed_derived.manifest.shards

    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        seen.append(done)
        if sum(seen) > sum(entry.examples for entry in shards[:2]):
            raise Stop

    def run(advance: Callable[[int], Any]) -> Store:
        progress = Calls(advance=advance)
        return derive(undisturbed, SPEC, 2, tmp_path / "store", shard_bytes=DERIVED_SHARD, progress=progress)

    seen: list[int] = []
    with pytest.raises(Stop):
        run(stop)
    damage(tmp_path / "store.partial")
    kept = {
        name: what
        for name, what in files(tmp_path / "store.partial").items()
        if name not in map(shard_name, made_again)
    }
    done: list[int] = []
    assert_resumed(run(done.append), undisturbed_derived, kept, sum(done))


@pytest.mark.torture
def test_an_unfinished_store_under_damage(undisturbed: Store, undisturbed_derived: Store, tmp_path: Path) -> None:
    """Damage to any of its files gives the same bytes in the end, or an error of ours."""

    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        seen.append(done)
        if sum(seen) > sum(entry.examples for entry in undisturbed_derived.manifest.shards[:2]):
            raise Stop

    def run(folder: Path, advance: Callable[[int], Any] = lambda done: None) -> Store:
        return derive(undisturbed, SPEC, 2, folder, shard_bytes=DERIVED_SHARD, progress=Calls(advance=advance))

    seen: list[int] = []
    with pytest.raises(Stop):
        run(tmp_path / "store", stop)
    right = {path.name: path.read_bytes() for path in undisturbed_derived.folder.glob("shard-*")}

    def read(partial: Path) -> dict[str, bytes]:
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(partial, tmp_path / "again" / "store.partial")
        store = run(tmp_path / "again" / "store")
        store.verify()
        return {entry.file: (store.folder / entry.file).read_bytes() for entry in store.manifest.shards}

    assert read(tmp_path / "store.partial") == right
    outcome = attack(tmp_path / "store.partial", tmp_path / "scratch", read, times(20))
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.harmless.total() > outcome.count / 2, outcome


@pytest.mark.torture
def test_derive_killed_at_any_operation(undisturbed: Store, undisturbed_derived: Store, tmp_path: Path) -> None:
    """A killed run leaves a whole store or none. Tests every third operation; more with ``HSKD_TORTURE``."""

    def run(folder: Path) -> Store:
        return derive(undisturbed, SPEC, 2, folder / "store", shard_bytes=2 * DERIVED_SHARD)

    alone = run(tmp_path)
    killed = 0
    for folder in killed_everywhere(tmp_path, run, step=max(1, 3 // times(1))):
        killed += 1
        assert not (folder / "store").exists() or read_whole(folder / "store")
        store = run(folder)
        assert store.manifest.shards == alone.manifest.shards
        store.verify()
        assert {path.name for path in store.folder.iterdir()} == {MANIFEST, *files(alone.folder)}
        shutil.rmtree(folder)
    assert killed > 3 * len(alone.manifest.shards) > 3


def read_whole(folder: Path) -> bool:
    Store.open(folder).verify()
    return True


# The last examples of the shards are taken from the uninterrupted run: (shard, examples into it).
@pytest.mark.parametrize(("shard", "into", "whole"), [(0, 1, 0), (1, 1, 1), (1, "all", 1), (2, 5, 2), (-1, "all", -1)])
def test_extract_killed_from_its_callback(
    setting: Setting, undisturbed: Store, nursery: Nursery, tmp_path: Path, shard: int, into: int | str, whole: int
) -> None:
    shards = undisturbed.manifest.shards
    assert len(shards) > 4
    shard, whole = shard % len(shards), whole % len(shards)
    before = sum(entry.examples for entry in shards[:shard])
    job = {"what": "extract", "folder": str(tmp_path / "store"), "shard_bytes": SMALL_SHARD}
    assert nursery.run(job | {"die_after": before + (shards[shard].examples if into == "all" else int(into))}) == [
        KILLED
    ]
    assert not (tmp_path / "store").exists()
    kept = files(tmp_path / "store.partial")
    assert sorted(kept) == [shard_name(i) for i in range(whole)]
    with pytest.raises(HskdError, match="was not finished; run the same command again"):
        Store.open(tmp_path / "store")
    done: list[int] = []
    resumed = setting.extract(tmp_path / "store", shard_bytes=SMALL_SHARD, batch_size=4, advance=done.append)
    assert_resumed(resumed, undisturbed, kept, sum(done))


@pytest.mark.parametrize(("sync", "whole"), [(1, 0), (2, 0), (3, 0), (6, 2), (7, 2), ("manifest", "all")])
def test_extract_killed_while_it_writes(
    setting: Setting, undisturbed: Store, nursery: Nursery, tmp_path: Path, sync: int | str, whole: int | str
) -> None:
    """Syncs: the plan, then each shard's note and the shard, then the manifest. Kills come before the renames."""
    shards = len(undisturbed.manifest.shards)
    job = {"what": "extract", "folder": str(tmp_path / "store"), "shard_bytes": SMALL_SHARD}
    assert nursery.run(job | {"die_at_sync": 2 * shards + 2 if sync == "manifest" else sync}) == [KILLED]
    partial = tmp_path / "store.partial"
    temporary = [path.name for path in partial.iterdir() if path.name.startswith(".")]
    assert len(temporary) == (2 if sync in (2, 6) else 1), temporary
    kept = files(partial)
    assert len(kept) == (shards if whole == "all" else whole)
    # Killed twice, and finished by a third process.
    assert nursery.run(job | {"die_at_sync": 1}) == [KILLED]
    assert nursery.run(job) == [0]
    resumed = Store.open(tmp_path / "store")
    now = files(resumed.folder)
    assert {name: now[name] for name in kept} == kept
    assert_resumed(resumed, undisturbed, {}, len(resumed))


@pytest.mark.parametrize("shard", [0, 1, -1])
def test_derive_killed(
    undisturbed: Store, undisturbed_derived: Store, nursery: Nursery, tmp_path: Path, shard: int
) -> None:
    shards = undisturbed_derived.manifest.shards
    assert len(shards) > 2
    shard %= len(shards)
    job = {
        "what": "derive",
        "superset": str(undisturbed.folder),
        "spec": SPEC.canonical,
        "folder": str(tmp_path / "store"),
        "shard_bytes": DERIVED_SHARD,
        "die_after": sum(entry.examples for entry in shards[: shard + 1]),
    }
    assert nursery.run(job) == [KILLED]
    kept = files(tmp_path / "store.partial")
    assert len(kept) == shard
    done: list[int] = []
    resumed = derive(
        undisturbed, SPEC, 2, tmp_path / "store", shard_bytes=DERIVED_SHARD, progress=Calls(advance=done.append)
    )
    assert_resumed(resumed, undisturbed_derived, kept, sum(done))


def test_two_processes_extract_once(undisturbed: Store, nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    job = {"what": "extract", "folder": str(folder), "shard_bytes": SMALL_SHARD}
    assert nursery.run(job, job) == [0, 0]
    store = Store.open(folder)
    assert_resumed(store, undisturbed, {}, len(store))
    done = sorted(int((tmp_path / f"store.{i}.done").read_text()) for i in range(2))
    assert done == [0, len(store)]


def test_two_processes_with_different_plans(
    undisturbed: Store, nursery: Nursery, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The waiting process must not take the other's store for its own."""
    job = {
        "what": "derive",
        "superset": str(undisturbed.folder),
        "folder": str(tmp_path / "store"),
        "shard_bytes": 1,  # a file per example, so that the two overlap
    }
    texts = ["2l_2t_0.1w", "2l_3t_0.2w"]
    codes = nursery.run(*(job | {"spec": text} for text in texts))
    assert sorted(codes) == [0, 1]
    assert Store.open(tmp_path / "store").spec == HSKSpec.parse(texts[codes.index(0)])


def test_a_finished_store_is_reused(
    setting: Setting, undisturbed: Store, undisturbed_derived: Store, tmp_path: Path
) -> None:
    calls: list[int] = []
    said: list[str] = []
    for folder in (undisturbed.folder, undisturbed_derived.folder):
        before = files(folder)
        if folder == undisturbed.folder:
            again = setting.extract(folder, say=said.append, advance=calls.append)
        else:
            again = derive(undisturbed, SPEC, 2, folder, progress=Calls(advance=calls.append, say=said.append))
        assert any("is there already" in line for line in said)
        said.clear()
        assert files(folder) == before
        assert again.manifest.shards == Store.open(folder).manifest.shards
    assert not calls


def test_the_beginning_of_another_store_is_refused(setting: Setting, nursery: Nursery, tmp_path: Path) -> None:
    job = {"what": "extract", "folder": str(tmp_path / "store"), "shard_bytes": SMALL_SHARD, "die_after": 20}
    assert nursery.run(job) == [KILLED]
    kept = files(tmp_path / "store.partial")
    with pytest.raises(MismatchError, match=r"store.partial: holds the beginning of another store .* delete that one"):
        setting.extract(tmp_path / "store", Superset((0, 1), (1, 2)), shard_bytes=SMALL_SHARD)
    with pytest.raises(MismatchError, match="another shard size"):
        setting.extract(tmp_path / "store", shard_bytes=SMALL_SHARD * 2)
    assert files(tmp_path / "store.partial") == kept


@pytest.mark.parametrize("sync", [2, 3, 4])
def test_a_fit_that_is_killed_ends_with_the_same_bytes(
    undisturbed: Store, nursery: Nursery, tmp_path: Path, sync: int
) -> None:
    """Killed while it writes the note of the fitted codec, the codec, or the note of the first shard."""
    spec = "2l_all_0.25w,width=pca"
    alone = derive(undisturbed, HSKSpec.parse(spec), 2, tmp_path / "alone", shard_bytes=DERIVED_SHARD)
    job = {"what": "derive", "superset": str(undisturbed.folder), "spec": spec, "shard_bytes": DERIVED_SHARD}
    folder = tmp_path / "derived"
    assert nursery.run(job | {"folder": str(folder), "die_at_sync": sync}) == [KILLED]
    assert (folder.with_name("derived.partial") / CODEC).is_file() == (sync == 4)
    assert nursery.run(job | {"folder": str(folder)}) == [0]
    resumed = Store.open(folder)
    assert resumed.manifest.codec == alone.manifest.codec is not None
    assert resumed.manifest.fingerprint == alone.manifest.fingerprint
