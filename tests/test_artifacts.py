"""Artifacts are atomic, built once, resumed, and identified by content."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hskd
from hskd.artifacts import SCHEMAS, ArtifactFolders, build
from hskd.errors import CorruptionError, HskdError
from hskd.hashing import canonical_json, file_sha256, fingerprint
from hskd.io import atomic_path, format_bytes, read_json, require_space, write_json, write_text

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=10,
)


def reversed_keys(value: Any) -> Any:
    """Return the same value with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(one) for one in value] if isinstance(value, list) else value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@given(JSON)
def test_canonical_json_round_trip_and_order(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(reversed_keys(value)) == text
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_is_golden() -> None:
    value = {"b": [1, 2.0, None], "a": {"z": True, "é": "ü"}}
    assert canonical_json(value) == '{"a":{"z":true,"é":"ü"},"b":[1,2.0,null]}'
    # sha256sum of that text, which names folders on disk.
    assert fingerprint(value) == "d37293789cb5ac12"
    assert fingerprint(value) != fingerprint({**value, "b": [1, 2, None]})


def test_write_and_read_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "value.json"
    write_json(path, {"b": "ü", "a": [1]})
    assert read_json(path) == {"b": "ü", "a": [1]}
    assert names(path.parent) == {"value.json"}
    path.write_bytes(b"abc")
    # https://csrc.nist.gov/projects/cryptographic-standards-and-guidelines/example-values
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(HskdError, match=r"none.json: no such file"):
        read_json(tmp_path / "none.json")
    for content in (b'{"a": ', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(CorruptionError, match=r"value.json: not valid JSON"):
            read_json(path)


def test_atomic_path_shows_only_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("ne", encoding="utf-8")
        assert temporary.parent == tmp_path and temporary != path
        assert path.read_text(encoding="utf-8") == "old"
        temporary.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == {"file"}


def test_what_is_published_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x", encoding="utf-8")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("raised", "seen"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, KeyboardInterrupt), (OSError, HskdError)]
)
@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, raised: type[BaseException], seen: type[BaseException], existed: bool
) -> None:
    path = tmp_path / "file"
    if existed:
        write_text(path, "old")
    with pytest.raises(seen), atomic_path(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise raised
    assert names(tmp_path) == ({"file"} if existed else set())
    if existed:
        assert path.read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    with (
        pytest.raises(HskdError, match=r"file: cannot be written \(No space left on device\)"),
        atomic_path(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for parent in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(HskdError, match="cannot be written"):
            write_text(parent / "inner", "x")
        with pytest.raises(HskdError, match="cannot be written"):
            build(parent / "folder", lambda partial: None)


def test_build_fills_and_reuses(tmp_path: Path) -> None:
    calls = []

    def builder(partial: Path) -> None:
        calls.append(partial)
        assert not (tmp_path / "a").exists()
        (partial / "part").write_text("x", encoding="utf-8")

    for _ in range(2):
        assert build(tmp_path / "a", builder) == tmp_path / "a"
    assert calls == [tmp_path / "a.partial"]
    assert names(tmp_path / "a") == {"part"}
    assert not (tmp_path / "a.partial").exists()


def test_build_resumes_what_a_killed_run_left(tmp_path: Path) -> None:
    def killed(partial: Path) -> None:
        (partial / "first").write_text("1", encoding="utf-8")
        raise KeyboardInterrupt

    found: list[str] = []

    def resumed(partial: Path) -> None:
        found.extend(names(partial))
        (partial / "second").write_text("2", encoding="utf-8")

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "a", killed)
    assert not (tmp_path / "a").exists()
    build(tmp_path / "a", resumed)
    assert found == ["first"]
    assert names(tmp_path / "a") == {"first", "second"}


def test_build_turns_a_full_disk_into_a_message(tmp_path: Path) -> None:
    def builder(partial: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(HskdError, match=r"a: cannot be written \(No space left on device\)"):
        build(tmp_path / "a", builder)
    assert not (tmp_path / "a").exists()


RACER = """
import sys, time, types
from pathlib import Path

package = sys.modules["hskd"] = types.ModuleType("hskd")  # hskd/__init__.py imports torch: seconds, for nothing here
package.__path__ = [sys.argv[3]]
from hskd.artifacts import build

folder, me = Path(sys.argv[1]), sys.argv[2]

def builder(partial):
    with (folder / "built").open("a") as file:
        file.write(me + "\\n")
    deadline = time.monotonic() + 120
    while len(list(folder.glob("arrived-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)  # the other one has arrived, and by now asks for the same folder
    (partial / "by").write_text(me)

(folder / f"arrived-{me}").touch()
print((build(folder / "a", builder) / "by").read_text())
"""


def test_two_processes_never_build_twice(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), me, str(Path(hskd.__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in ("one", "two")
    ]
    said = [racer.communicate(timeout=200)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    built = (tmp_path / "built").read_text(encoding="utf-8").split()
    assert len(built) == 1
    assert said == built * 2


def test_workspace_finds_what_the_same_recipe_made(tmp_path: Path) -> None:
    workspace = ArtifactFolders(tmp_path)
    recipe = {"teacher": "t", "spec": {"k": 3, "w": 0.5}}
    folder = workspace.folder("stores", recipe)
    assert folder.parent == tmp_path / "stores"
    assert workspace.folder("stores", reversed_keys(recipe)) == folder
    assert read_json(folder.with_name(folder.name + ".recipe.json")) == {**recipe, "schema": SCHEMAS["stores"]}
    assert workspace.folder("students", recipe) != folder
    assert workspace.folder("stores", {**recipe, "teacher": "u"}) != folder


def test_require_space(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    said = require_space(folder, 1536, "the store")
    assert said.startswith("the store needs 1.5 KiB; ") and said.endswith(f" free on the disk of {folder}")
    with pytest.raises(HskdError, match=r"the store needs 1048576.0 TiB; .* free on the disk of .*keep less HSK"):
        require_space(folder, 2**60, "the store")
    assert not folder.parent.exists()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**30, "1.0 GiB"),
        (5 * 2**40, "5.0 TiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
