"""Packing the files of trials into one table and one file of outputs loses nothing, even if it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from grid.conftest import Cli, Write
from support.grid_lab import OPTIONS, TRIALS, Ran, outputs, recorded, run, same_predictions, trials_of

from hskd.artifacts import sealed
from hskd.errors import CorruptionError, HskdError
from hskd.grid.record import grid_content
from hskd.grid.run import GridStatus
from hskd.grid.spec import load_grid
from hskd.results import ResultsFolder, load, pack, unpack

PACKED = {"grid.yaml", "trials.parquet", "predictions.npz", "labels.npz"}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file except locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def out(undisturbed: Ran, tmp_path: Path) -> Path:
    """The results of a whole grid, packed, for tests that change them."""
    return shutil.copytree(undisturbed.out, tmp_path / "results")


def test_a_finished_grid_is_four_files(undisturbed: Ran) -> None:
    assert set(contents(undisturbed.out)) == PACKED
    assert not (undisturbed.out / "trials").exists()


def test_the_outputs_are_read_with_numpy_alone(undisturbed: Ran) -> None:
    trial = undisturbed.table["trial"].iloc[3]
    arrays = np.load(undisturbed.out / "predictions.npz")
    index = arrays["test.trials"].tolist().index(trial)
    logits = arrays["test"][index]
    np.testing.assert_array_equal(logits, ResultsFolder(undisturbed.out).outputs([trial], "test")[trial])
    assert (logits.dtype, logits.shape) == (np.float16, (16, 2))


def test_packing_and_unpacking_change_no_byte(out: Path) -> None:
    packed = contents(out)
    assert unpack(out) == TRIALS
    files = contents(out)
    assert len([name for name in files if name.startswith("trials/")]) == 2 * TRIALS
    result = pack(out)
    assert (result.trials, result.folded) == (TRIALS, TRIALS)
    assert contents(out) == packed
    unpack(out)
    results = {name: content for name, content in contents(out).items() if name.endswith(".json")}
    assert results == {name: files[name] for name in results}


def test_predictions_on_the_scored_split_alone_can_be_kept(out: Path, cli: Cli) -> None:
    before, table = ResultsFolder(out).packed_outputs(), load(out)
    assert {split for arrays in before.values() for split in arrays} == {"dev", "test"}
    assert cli("pack", out, "--scored-only")[0] == 0
    kept = ResultsFolder(out).packed_outputs()
    assert kept.keys() == before.keys()
    for trial, arrays in kept.items():
        assert set(arrays) == {"test"}
        np.testing.assert_array_equal(arrays["test"], before[trial]["test"])
    pd.testing.assert_frame_equal(load(out), table)
    files = contents(out)
    assert pack(out, scored_only=True).folded == 0
    assert contents(out) == files
    assert unpack(out) == TRIALS
    assert ResultsFolder(out).outputs(list(kept), "test").keys() == kept.keys()


def test_packing_again_changes_nothing(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    result = pack(out)
    assert (result.trials, result.folded, result.before) == (TRIALS, 0, result.after)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_some_may_be_packed_and_some_not_and_a_file_wins(undisturbed: Ran, out: Path, grid_file: Path) -> None:
    unpack(out)
    files = sorted((out / "trials").glob("*"))
    shutil.copytree(out / "trials", out / "aside")
    for path in files[: TRIALS + 1]:
        path.unlink()
    pack(out)
    for path in (out / "aside").iterdir():
        if path.name in {file.name for file in files[: TRIALS + 1]}:
            (out / "trials").mkdir(exist_ok=True)
            shutil.copy(path, out / "trials" / path.name)
    shutil.rmtree(out / "aside")
    pd.testing.assert_frame_equal(load(out), undisturbed.table)
    same_predictions(out, undisturbed.out)
    assert len(GridStatus.of(trials_of(grid_file)[1], out).done) == TRIALS
    victim = ResultsFolder(out).result_files()[0]
    changed = json.loads(victim.read_text()) | {"peak_memory_bytes": 7}
    victim.write_text(json.dumps(sealed(changed)))
    for _ in range(2):
        assert load(out).set_index("trial").loc[victim.stem, "peak_memory_bytes"] == 7
        pack(out)


def test_outputs_of_another_shape_are_kept_apart(out: Path) -> None:
    unpack(out)
    first, second = sorted((out / "trials").glob("*.npz"))[:2]
    np.savez(out / "new.npz", test=np.arange(6, dtype=np.float16).reshape(3, 2), other=np.zeros(4))
    kept = ResultsFolder(out)
    kept.write(first.stem, kept.results()[first.stem], out / "new.npz")
    second.unlink()
    pack(out)
    assert kept.outputs([first.stem], "test")[first.stem].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert kept.outputs([first.stem], "other")[first.stem].shape == (4,)
    assert len(outputs(out, "test")) == TRIALS - 1 and second.stem not in outputs(out, "test")


def _die_at(step: int, out: Path) -> int:
    """Pack in a child that is killed at the ``step``-th file operation; return the number of operations."""
    child = os.fork()
    if child == 0:
        done = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal done
            path = str(arguments[0]) if arguments else ""
            if event in ("os.rename", "os.remove", "os.rmdir") and path.startswith(str(out)):
                done += 1
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            pack(out)
        finally:
            os._exit(min(done, 255))
    _, status = os.waitpid(child, 0)
    return -1 if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def test_killed_before_each_step_nothing_is_lost(out: Path, tmp_path: Path) -> None:
    unpack(out)
    kept = ResultsFolder(out).result_files()[:4]
    for path in (out / "trials").iterdir():
        if path.stem not in {file.stem for file in kept}:
            path.unlink()
    expected, logits = recorded(out), outputs(out, "test")
    pack(shutil.copytree(out, tmp_path / "packed"))
    packed = contents(tmp_path / "packed")
    steps = 0
    while True:
        steps += 1
        copy = shutil.copytree(out, tmp_path / f"killed-{steps}")
        code = _die_at(steps, copy)
        assert recorded(copy) == expected
        np.testing.assert_equal(outputs(copy, "test"), logits)
        pack(copy)
        assert contents(copy) == packed
        assert not (copy / "trials").exists()
        shutil.rmtree(copy)
        if code != -1:
            break
    assert steps > 2 + 2 * len(kept) + 2, "two files take their place, then the trials', the plan and the folder go"


def test_a_damaged_file_stops_the_packing_and_nothing_is_deleted(out: Path) -> None:
    unpack(out)
    sorted((out / "trials").glob("*.npz"))[2].write_bytes(b"PK")
    before = contents(out)
    with pytest.raises(CorruptionError, match=r"\.npz: cannot be read"):
        pack(out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["trials.parquet", "predictions.npz"])
def test_damaged_packed_files_are_named(out: Path, name: str) -> None:
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptionError, match=rf"{name}: cannot be read"):
        outputs(out, "test")


def test_more_seeds_go_on_from_a_packed_grid_and_are_folded_too(
    undisturbed: Ran, write: Write, grid_file: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(undisturbed.root, tmp_path / "copy")
    more = run(write("seeds: 3"), root)
    assert [title for title in more.told.titles if "seed 0" in title or "seed 1" in title] == []
    assert len(more.table) == TRIALS + 6
    assert set(contents(root / "out")) == PACKED
    fewer = more.table[more.table["seed"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(fewer, undisturbed.table)
    assert ResultsFolder(root / "out").grid() == grid_content(load_grid(str(write("seeds: 3"))))
    again = run(grid_file, root)  # with fewer seeds, the other trials are kept but left out of the table
    pd.testing.assert_frame_equal(again.table, undisturbed.table)
    assert len(ResultsFolder(root / "out").done()) == TRIALS + 6


def test_the_recorded_grid_is_a_grid_file_of_the_same_trials(undisturbed: Ran, write: Write, tmp_path: Path) -> None:
    recorded_ids = [config.id for config in trials_of(undisturbed.out / "grid.yaml")[1]]
    assert recorded_ids == ResultsFolder(undisturbed.out).planned()
    planned = tmp_path / "out" / "grid.yaml"
    planned.parent.mkdir()
    text = "# why we run it\n" + Path(write("seeds: 1")).read_text()
    planned.write_text(text)
    shutil.copytree(undisturbed.work, tmp_path / "work")
    run(planned, tmp_path)
    assert planned.read_text() == text


def test_the_command(undisturbed: Ran, out: Path, cli: Cli, tmp_path: Path) -> None:
    unpack(out)
    code, said, err = cli("pack", out)
    assert code == 0, err
    assert said.startswith(f"{out}: {TRIALS} trials, {TRIALS} folded; ")
    code, said, _ = cli("pack", out, undisturbed.out)
    assert code == 0 and said.count(f"{TRIALS} trials, 0 folded") == 2
    code, _, err = cli("pack", tmp_path / "nothing")
    assert code == 2 and "no results there" in err
    code, said, _ = cli("status", out / "grid.yaml", "--out", out, *OPTIONS)
    assert code == 0 and "12 done, 0 to do" in said


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(HskdError, match="no results there"):
        pack(tmp_path)
