"""Results folders that are damaged, edited, or changed by another process read correctly or are rejected by name."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from support.grid_lab import TRIALS, Ran
from support.mutations import attack, times

from hskd.analysis.table import read_trials
from hskd.artifacts import lock_path
from hskd.errors import CorruptionError, HskdError
from hskd.results import ResultsFolder, load, pack, unpack
from hskd.results.folder import ATTEMPTS, PLANNED_FILE, read_arrays, read_unpacked

Read = tuple[pd.DataFrame, list[str], dict[str, np.ndarray], np.ndarray]


def read(out: Path) -> Read:
    """Read everything that an analysis reads. Data that are reported as missing are an error here."""
    table, kept = load(out), ResultsFolder(out)
    planned = kept.planned()
    ids = list(table["trial"])
    outputs, labels = kept.outputs(ids, "test") | {}, kept.labels("test")
    kept.grid()
    if (planned is not None and set(planned) != set(ids)) or outputs.keys() != set(ids) or labels is None:
        raise HskdError("the report says that trials, predictions or labels are missing")
    return table, ids, outputs, labels


def equal(first: Read, second: Read) -> bool:
    same = first[0].equals(second[0]) and np.array_equal(first[3], second[3])
    return bool(same and all(np.array_equal(array, second[2][trial]) for trial, array in first[2].items()))


@pytest.fixture
def out(undisturbed: Ran, tmp_path: Path) -> Path:
    """The results of a whole grid, packed, for tests that damage them."""
    return shutil.copytree(undisturbed.out, tmp_path / "results")


@pytest.mark.torture
@pytest.mark.parametrize("packed", [True, False])
def test_damage_is_noticed_or_does_no_harm(packed: bool, out: Path, tmp_path: Path) -> None:
    if not packed:
        unpack(out)
    (tmp_path / "scratch").mkdir()
    outcome = attack(out, tmp_path / "scratch", read, count=times(30), seed=packed, equal=equal)
    print(f"packed={packed}: {outcome.refused.total()} refused, {outcome.harmless.total()} harmless")
    assert not outcome.wrong, outcome.wrong
    assert outcome.refused.total() > outcome.count / 4


def edited(out: Path, change: Callable[[pd.DataFrame], Any]) -> None:
    """Edit the table as a user of pandas would, which loses the file's metadata."""
    frame = pd.read_parquet(out / "trials.parquet")
    change(frame)
    frame.to_parquet(out / "trials.parquet")


EDITS: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "a score": (lambda frame: frame.loc.__setitem__((3, "score"), 0.99), r"column score says 0\.99 in data row 4"),
    "scores as text": (lambda frame: frame.__setitem__("score", frame["score"].astype(str)), "column score says '"),
    "words for numbers": (lambda frame: frame.__setitem__("seed", "many"), "column seed says 'many'"),
    "a task": (lambda frame: frame.__setitem__("task", "cola"), "column task says 'cola'"),
    "an arm": (lambda frame: frame.loc.__setitem__((0, "arm"), "full"), "column arm"),
    "nothing": (lambda frame: frame.loc.__setitem__((5, "dev_score"), np.nan), "column dev_score says None"),
    "a column upside down": (lambda frame: frame.__setitem__("w", frame["w"].to_numpy()[::-1]), "column w"),
    "results that changed places": (
        lambda frame: frame.__setitem__("result", frame["result"].to_numpy()[::-1]),
        "the result of trial .* is that of",
    ),
    "a result": (
        lambda frame: frame.__setitem__("result", frame["result"].str.replace('"steps": ', '"steps": 1')),
        "the result of trial .* is not as it was written",
    ),
    "a row twice": (lambda frame: frame.__setitem__("trial", frame["trial"].iloc[0]), "a trial comes twice"),
    "no text for a result": (lambda frame: frame.__setitem__("result", None), "expected text|cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), EDITS.values(), ids=EDITS)
def test_a_table_that_contradicts_its_trials_is_refused(
    change: Callable[[pd.DataFrame], Any], words: str, out: Path
) -> None:
    edited(out, change)
    for use in (load, read_trials, pack):
        ResultsFolder(out).write_plan([])  # gives pack something to fold
        with pytest.raises(CorruptionError, match=rf"trials\.parquet: (.|\n)*({words})"):
            use(out)


def test_an_edited_table_is_made_again_from_its_results(undisturbed: Ran, out: Path) -> None:
    edited(out, lambda frame: frame.loc.__setitem__((3, "score"), 0.99))
    assert unpack(out) == TRIALS
    pack(out)
    pd.testing.assert_frame_equal(load(out), undisturbed.table)


def test_an_edited_file_of_a_trial_is_refused(out: Path) -> None:
    unpack(out)
    file = ResultsFolder(out).result_files()[2]
    content = json.loads(file.read_text())
    content["metrics"]["test"]["score"] = 0.99
    file.write_text(json.dumps(content))
    with pytest.raises(CorruptionError, match=rf"{file.name}: the result of .* is not as it was written"):
        load(out)
    del content["checksum"]  # as versions up to 0.1 wrote it
    file.write_text(json.dumps(content))
    assert load(out).set_index("trial").loc[file.stem, "score"] == 0.99
    for wrong in ({"settings": {}}, {"settings": content["settings"] | {"seed": "one"}}, {"kept_values": 2**70}):
        file.write_text(json.dumps(content | wrong))
        with pytest.raises(CorruptionError, match=rf"{file.name}: not a trial's result"):
            load(out)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", r"not valid JSON \(.*\); restore it, or delete it and run the grid again\."),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
    ],
)
def test_a_damaged_file_that_is_not_packed_yet_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / PLANNED_FILE).write_bytes(content)
    with pytest.raises(CorruptionError, match=rf"{PLANNED_FILE}: .*{said}"):
        ResultsFolder(tmp_path).planned()


def test_a_file_that_is_packed_while_it_is_read_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_unpacked(tmp_path / PLANNED_FILE)


def test_predictions_of_another_trial_are_refused(out: Path) -> None:
    unpack(out)
    first, second = sorted((out / "trials").glob("*.npz"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    for use in (lambda: ResultsFolder(out).outputs([first.stem], "test"), lambda: pack(out)):
        with pytest.raises(CorruptionError, match=rf"{first.stem}\.npz: .* is not what the trial gave"):
            use()


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a pickle ran",)


def _header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


ARRAYS = {
    "a pickle": _header("'|O'", "(1,)") + pickle.dumps([_Bomb()]),
    "a pickle alone": pickle.dumps(_Bomb()),
    "a billion rows": _header("'<f2'", "(1000000000, 1000)") + b"\0" * 64,
    "beyond 64 bits": _header("'<f2'", f"({2**70}, {2**70})") + b"\0" * 64,
    "rows below none": _header("'<f2'", "(-1, 4)") + b"\0" * 64,
    "too short": _header("'<f2'", "(40,)") + b"\0" * 64,
    "too long": _header("'<f2'", "(4,)") + b"\0" * 64,
    "deep": _header("'<f2'", "(" * 40 + ")" * 40) + b"\0" * 64,
    "nothing": b"",
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
def test_no_array_runs_code_or_is_believed(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("test.npy", content)
    with pytest.raises(CorruptionError, match=r"a\.npz: cannot be read"):
        read_arrays(file)
    file.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CorruptionError, match=r"a\.npz: cannot be read"):
        read_arrays(file)
    assert "a pickle ran" not in capfd.readouterr().out


def test_predictions_must_fit_their_trials(out: Path) -> None:
    def spoiled(**changes: np.ndarray | None) -> None:
        arrays = dict(np.load(out / "predictions.npz")) | changes
        np.savez(out / "spoiled.npz", **{name: array for name, array in arrays.items() if array is not None})
        (out / "spoiled.npz").replace(out / "predictions.npz")

    kept = dict(np.load(out / "predictions.npz"))
    ids = kept["test.trials"]
    for changes in (
        {"test.trials": ids[:-1]},
        {"test.trials": np.append(ids[:-1], ids[0])},
        {"test.trials": None},
        {"test": None},
        {"test.trials": np.arange(len(ids))},
        {"test.trials": ids[::-1]},
        {"test": kept["test"][:, :-1]},
    ):
        spoiled(**kept)
        spoiled(**changes)
        with pytest.raises(CorruptionError, match=r"predictions\.npz: "):
            ResultsFolder(out).outputs(ids.tolist(), "test")


def test_a_table_that_lies_about_its_size_is_refused(out: Path) -> None:
    table = pq.read_table(out / "trials.parquet")
    short = table.slice(0, 3).replace_schema_metadata({b"hskd.planned": b'["' + b"x" * 100 + b'"' * 3})
    pq.write_table(short, out / "trials.parquet")
    with pytest.raises(CorruptionError, match=r"trials\.parquet: cannot be read"):
        load(out)
    pq.write_table(pa.table({"result": ["{}"]}), out / "trials.parquet")
    with pytest.raises(CorruptionError, match=r"trials\.parquet: "):
        load(out)


def test_a_reader_is_not_disturbed_by_folding(undisturbed: Ran, out: Path) -> None:
    import multiprocessing

    folding = multiprocessing.get_context("fork").Process(target=_fold_again_and_again, args=(out,))
    folding.start()
    reads = 0
    while folding.is_alive():
        read(out)
        reads += 1
    folding.join()
    assert folding.exitcode == 0 and reads > 3
    pd.testing.assert_frame_equal(load(out), undisturbed.table)


def test_folding_waits_for_a_reader_that_it_disturbs_again_and_again(out: Path) -> None:
    kept = ResultsFolder(out)
    lock = FileLock(lock_path(out / "pack"), is_singleton=True)
    attempts = 0

    def read_slowly() -> int:
        nonlocal attempts
        attempts += 1
        unpack(out)
        files = kept.result_files()
        if not lock.is_locked:
            pack(out)
        return len([file.read_bytes() for file in files])

    assert kept._settled(read_slowly) > 0
    assert attempts == ATTEMPTS + 1
    with pytest.raises(HskdError, match="another process moves the results"):
        kept._settled(lambda: (out / "deleted").read_bytes())


def _fold_again_and_again(out: Path) -> None:
    kept = ResultsFolder(out)
    for _ in range(4):
        results, outputs = kept.results(), kept.packed_outputs()
        for trial, arrays in outputs.items():
            np.savez(out / "again.npz", **arrays)  # type: ignore[arg-type]
            kept.write(trial, results[trial], out / "again.npz")
        pack(out)
