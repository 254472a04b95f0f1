"""Every fault of a store is detected and reported in one message, and never read as knowledge."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from store.conftest import SMALL_SHARD, Hskd, Setting
from support.calls import Calls
from support.small_disk import small_disk_at
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.selectors import Tokens
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.reader import Store
from hskd.store.writer import PLAN, misfit, shard_note
from hskd.store_format.layout import MANIFEST
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import TokenizedSplit, load_task, tokenize
from hskd.teachers.forward import NotFiniteError, require_finite
from hskd.teachers.loading import Teacher
from hskd.trials.prepare import Distillation, Student, from_store
from hskd.trials.settings import DistillSettings

SPEC = HSKSpec.parse("2l_3t_0.1w")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def derived(superset: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return derive(superset, SPEC, 2, tmp_path_factory.mktemp("derived") / "store")


@pytest.fixture
def copy(superset: Store, tmp_path: Path) -> Path:
    """A copy of the superset, for tests that damage it."""
    return shutil.copytree(superset.folder, tmp_path / "copy")


def refused(result: tuple[int, str, str]) -> str:
    """Return the message of a failed command: one message, no traceback, exit code 2, empty standard output."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0], err
    return errors[0]


# ---- damage


def flip(path: Path, offset: int, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= bits
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["superset", "derived"])
@pytest.mark.parametrize("shard", [0, -1])
@pytest.mark.parametrize("place", ["length", "brace", "header", "first", "middle", "last"])
def test_verify_finds_one_flipped_byte(
    superset: Store, derived: Store, tmp_path: Path, hskd: Hskd, kind: str, shard: int, place: str
) -> None:
    folder = shutil.copytree({"superset": superset, "derived": derived}[kind].folder, tmp_path / "copy")
    path = sorted(folder.glob("shard-*"))[shard]
    header, size = int.from_bytes(path.read_bytes()[:8], "little"), path.stat().st_size
    offsets = {"length": 0, "brace": 8, "header": 8 + header // 2, "first": 8 + header, "last": size - 1}
    flip(path, offsets.get(place, (8 + header + size) // 2))
    message = refused(hskd("store", "verify", folder))
    assert path.name in message and "again" in message


@pytest.mark.parametrize("bits", [0x01, 0x04, 0x20])
def test_no_flip_in_a_header_gets_by(derived: Store, tmp_path: Path, bits: int) -> None:
    """Flips every byte of the header: names, types, shapes, offsets, punctuation."""
    folder = shutil.copytree(derived.folder, tmp_path / "copy")
    path = next(folder.glob("shard-*"))
    whole = path.read_bytes()
    for offset in range(8 + int.from_bytes(whole[:8], "little")):
        content = bytearray(whole)
        content[offset] ^= bits
        path.write_bytes(content)
        with pytest.raises(CorruptionError, match=path.name):
            Store.open(folder).verify()


def test_truncated_and_missing_shards(copy: Path, hskd: Hskd) -> None:
    path = sorted(copy.glob("shard-*"))[1]
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:100], b"", whole + b"x"):
        path.write_bytes(content)
        message = refused(hskd("store", "verify", copy))
        assert f"{path.name}: {len(content)} bytes where {len(whole)} were written" in message
    path.unlink()
    assert f"{path.name}: the shard is missing" in refused(hskd("store", "verify", copy))
    assert f"{path.name}: the shard is missing" in refused(
        hskd("store", "derive", copy, "--spec", "1l_1t_0.1w", "--student-layers", 2, "--out", copy.parent / "out")
    )
    assert not (copy.parent / "out").exists()


def with_checksum(manifest: dict[str, Any]) -> str:
    """Return a manifest with a matching checksum as JSON, as if it was written wrong rather than damaged."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return json.dumps(content | {"checksum": fingerprint(content)})


@pytest.mark.parametrize("field", ["mapped", "special_ids", "made_by", "examples"])
def test_an_edited_manifest(copy: Path, field: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest[field] = {"mapped": [2, 1], "special_ids": {"sep": 0}, "made_by": {}, "examples": 1}[field]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptionError, match="does not match its checksum"):
        Store.open(copy)


def test_two_shards_swapped(copy: Path) -> None:
    first, second, *_ = sorted(copy.glob("shard-*"))
    manifest = json.loads((copy / MANIFEST).read_text())
    first.rename(copy / "aside")
    second.rename(first)
    (copy / "aside").rename(second)
    for entry in manifest["shards"][:2]:  # matching sizes must not make it valid
        entry["bytes"] = (copy / entry["file"]).stat().st_size
    (copy / MANIFEST).write_text(with_checksum(manifest))
    with pytest.raises(CorruptionError, match="shard-0000"):
        Store.open(copy).verify()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "not a store manifest"),
        (b"{}", "store format None"),
        ({"format": 1}, "store format 1 is not the format 2 that this version reads; extract it again"),
        ({"kind": "other"}, "not a store manifest: field kind"),
        ({"examples": None}, "not a store manifest: field examples"),
        ({"surprise": 1}, "not a store manifest: field surprise"),
        ({"shards": []}, "0 shards"),
        ({"examples": 63}, "names 63 examples"),
        ({"precision": "fp16"}, "array values"),
        ({"precision": "fp64"}, "unknown selector 'fp64'"),
        ({"layers": [0, 1], "mapped": [0, 1]}, "array values"),
        ({"layers": [0, 1]}, "names layers or neurons that a superset cannot have"),
        ({"attention_layers": []}, "array attention"),
        ({"teacher_width": 16}, "array values"),
        ({"spec": {"depth": 1}, "student_layers": 2, "kind": "derived"}, "depth"),
    ],
)
def test_damaged_manifest(copy: Path, hskd: Hskd, change: bytes | dict[str, Any], said: str) -> None:
    path = copy / MANIFEST
    path.write_bytes(
        change if isinstance(change, bytes) else with_checksum(json.loads(path.read_text()) | change).encode()
    )
    assert said in refused(hskd("store", "verify", copy))


def test_a_manifest_names_shards_of_its_folder_only(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["shards"][0]["file"] = "../elsewhere.safetensors"
    (copy / MANIFEST).write_text(with_checksum(manifest))
    with pytest.raises(CorruptionError, match=f"{MANIFEST}: .*damaged"):
        Store.open(copy)


def test_a_folder_without_a_finished_store(tmp_path: Path, hskd: Hskd) -> None:
    for command in ("inspect", "verify"):
        assert f"no store (there is no {MANIFEST})" in refused(hskd("store", command, tmp_path / "none"))
    (tmp_path / "none.partial").mkdir()
    for command in ("inspect", "verify"):
        message = refused(hskd("store", command, tmp_path / "none"))
        assert "its extraction was not finished; run the same command again" in message


# ---- mismatches


@pytest.fixture(scope="module")
def student_folder(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = RositaSettings(layers=2, heads=2, ffn=24)
    return create_rosita(setting.teacher, setting.train, sizes, tmp_path_factory.mktemp("student") / "student")


def prepare(setting: Setting, store: Store, student: Path, out: Path, **changes: Any) -> None:
    loaded = Student.load(student, setting.task)
    wanted = Distillation(DistillSettings(), None, loaded, setting.task, setting.train)
    from_store(store, replace(wanted, **changes), out / "derived")


def test_store_of_another_teacher(
    setting: Setting, student_folder: Path, tokenizer: BertTokenizerFast, tmp_path: Path, hskd: Hskd
) -> None:
    make_bert(seed=1).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    other = Teacher.load(str(tmp_path / "teacher"), setting.task)
    extract(other, setting.task, setting.train, Superset((0, 1, 2), (1, 2)), tmp_path / "store")
    message = refused(
        hskd("distill", "--store", tmp_path / "store", "--student", student_folder, "--out", tmp_path, *setting.options)
    )
    assert f"is of teacher {other.fingerprint}" in message
    assert f"was pruned from teacher {setting.teacher.fingerprint}" in message


def test_store_of_another_tokenizer(
    setting: Setting, superset: Store, student_folder: Path, tmp_path: Path, hskd: Hskd
) -> None:
    student = shutil.copytree(student_folder, tmp_path / "student")
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(["some other text altogether"] * 5, vocab_size=60, show_progress=False)
    trainer.save_model(str(tmp_path))
    for old in (*student.glob("*token*"), student / "checksums.json"):
        old.unlink()
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True).save_pretrained(student)
    message = refused(
        hskd("distill", "--store", superset.folder, "--student", student, "--out", tmp_path, *setting.options)
    )
    assert "have different tokenizers" in message


def test_store_of_other_data(
    setting: Setting, superset: Store, student_folder: Path, data_folder: Path, tmp_path: Path, hskd: Hskd
) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    with (data / "train.csv").open("a", encoding="utf-8") as file:
        file.write("a sentence that the store has not seen,positive\n")
    options = [str(data) if option == str(setting.data_folder) else option for option in setting.options]
    message = refused(
        hskd("distill", "--store", superset.folder, "--student", student_folder, "--out", tmp_path, *options)
    )
    assert "1 of 65 examples are not in this store of 64" in message

    changed = setting.train.take(range(len(setting.train)))
    changed.input_ids[7] += 1
    with pytest.raises(MismatchError, match=r"other tokens here than in the store \(0 of 64 differ in length\)"):
        prepare(setting, superset, student_folder, tmp_path, train=changed)
    assert not (tmp_path / "derived").exists()


def test_a_part_of_the_data_is_served(setting: Setting, superset: Store, student_folder: Path, tmp_path: Path) -> None:
    prepare(setting, superset, student_folder, tmp_path, train=setting.train.first(10))
    assert len(Store.open(tmp_path / "derived")) == len(superset)


def test_store_of_another_maximum_length(
    setting: Setting, superset: Store, student_folder: Path, tmp_path: Path, hskd: Hskd
) -> None:
    message = refused(
        hskd(
            *("distill", "--store", superset.folder, "--student", student_folder, "--out", tmp_path),
            *(*setting.options, "--max-length", 6),
        )
    )
    assert "made from another maximum length: max_length is 128 in the store and 6 here" in message


def test_store_of_another_task_or_other_labels(
    setting: Setting, superset: Store, student_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="made from another task: task is 'custom' in the store and 'other' here"):
        prepare(setting, superset, student_folder, tmp_path, task=replace(setting.task, name="other"))
    manifest = superset.manifest
    other = manifest.model_copy(update={"origin": manifest.origin.model_copy(update={"label_names": ("sad", "glad")})})
    with pytest.raises(MismatchError, match="made from other label names"):
        prepare(setting, Store(superset.folder, other, superset._shards), student_folder, tmp_path)


def test_a_derived_store_serves_its_spec_only(
    setting: Setting, superset: Store, derived: Store, student_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match=r"keeps 2l_3t_0.1w, and 2l_3t_0.2w is asked for; name the superset"):
        prepare(setting, derived, student_folder, tmp_path, spec=HSKSpec.parse("2l_3t_0.2w"))
    with pytest.raises(MismatchError, match=r"store of the spec 2l_3t_0.1w, not a superset"):
        derive(derived, SPEC, 2, tmp_path / "again")
    shallow = derive(superset, SPEC, 1, tmp_path / "shallow")
    with pytest.raises(MismatchError, match="derived for a student of 1 layers, and this one has 2"):
        prepare(setting, shallow, student_folder, tmp_path)


# ---- contents that a superset lacks


@pytest.mark.parametrize(
    ("held", "text", "said"),
    [
        (Superset((0, 2), (1, 2)), "all_1t_0.1w", r"needs teacher layers \[1\], .*\[0, 2\].*--layers 0,1,2\."),
        (Superset((0, 1, 2), (1,)), "1l_1t_0.1w", r"attention layers 2, .*\[1\].*--attention-layers 1,2\."),
        (Superset((0, 1, 2), ()), "all_1t_0.1w,att_map=top", r"attention layers 1,2, .*\[\].*--attention-layers 1,2\."),
        (
            Superset((2,), (2,), "fp16"),
            "1l_1t_0.1w,precision=fp32",
            r"fp32, .*fp16; .*--precision fp32.*precision=fp16",
        ),
        (Superset((2,), (2,), "bf16"), "1l_1t_0.1w", r"values in fp16, .*holds bf16"),
    ],
)
def test_spec_that_the_superset_cannot_serve(
    setting: Setting, tmp_path: Path, hskd: Hskd, held: Superset, text: str, said: str
) -> None:
    setting.extract(tmp_path / "store", held)
    message = refused(
        hskd("store", "derive", tmp_path / "store", "--spec", text, "--student-layers", 2, "--out", tmp_path / "out")
    )
    with pytest.raises(HskdError, match=said):
        raise HskdError(message)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("superset", "said"),
    [
        (Superset((0, 3), ()), r"layers \[0, 3\]: out of range: the teacher has layers 0..2"),
        (Superset((0,), (0,)), r"attention layers \[0\]: out of range: the teacher has attention layers 1..2"),
        (Superset((0,), (3,)), r"attention layers \[3\]: out of range"),
    ],
)
def test_layers_that_the_teacher_lacks(setting: Setting, tmp_path: Path, superset: Superset, said: str) -> None:
    with pytest.raises(HskdError, match=said):
        setting.extract(tmp_path / "store", superset)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken(setting: Setting, superset: Store, derived: Store, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="holds another store already; choose another folder"):
        setting.extract(superset.folder, Superset((0, 1), (1, 2)))
    with pytest.raises(MismatchError, match="holds another store already"):
        derive(superset, HSKSpec.parse("2l_3t_0.2w"), 2, derived.folder)
    with pytest.raises(MismatchError, match="holds another store already"):
        derive(superset, SPEC, 2, superset.folder)
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(HskdError, match="exists and is not a store; choose another folder"):
            setting.extract(target)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# ---- disks


def test_too_little_space_is_known_before_anything_runs(
    setting: Setting, superset: Store, tmp_path: Path, hskd: Hskd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5000, 5000))
    message = refused(
        hskd("store", "extract", "--teacher", setting.teacher_folder, "--out", tmp_path / "store", *setting.options)
    )
    assert "this store needs " in message and "4.9 KiB free on the disk of " in message
    assert "Free some space, choose another folder, or keep less HSK." in message
    calls: list[int] = []
    with pytest.raises(HskdError, match=r"4\.9 KiB free"):
        derive(superset, HSKSpec(), 2, tmp_path / "derived", progress=Calls(advance=calls.append))
    assert not calls
    derive(superset, HSKSpec.parse("1l_1t_0.03w"), 2, tmp_path / "little")


def test_space_is_asked_for_what_is_left_to_write(
    setting: Setting, superset: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed near its end resumes with little free space."""

    class Stop(Exception):
        pass

    done = 0

    def advance(examples: int) -> None:
        nonlocal done
        done += examples
        if done == len(superset):
            raise Stop

    with pytest.raises(Stop):
        setting.extract(tmp_path / "store", shard_bytes=SMALL_SHARD, advance=advance)
    last = superset.manifest.shards[-1].bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - last, last))
    said: list[str] = []
    setting.extract(tmp_path / "store", shard_bytes=SMALL_SHARD, say=said.append)
    assert said[0].startswith("the rest of this store (")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk_at(folder, "512k"):
        yield folder


def left_behind(partial: Path) -> set[str]:
    """Return the files that a failed run left, without its plan and the notes beside its shards."""
    shards = {path.name for path in partial.iterdir()} - {PLAN}
    notes = {shard_note(partial / name).name for name in shards if name.startswith("shard-")}
    assert notes <= shards
    return shards - notes


def test_a_disk_that_fills_up_while_we_write(
    setting: Setting, superset: Store, small_disk: Path, hskd: Hskd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the space after our check. Once there is room again, the same command resumes."""
    other = small_disk / "other"

    def fill_up(examples: int) -> None:
        if len(list(small_disk.glob("store.partial/shard-*"))) == 3 and not other.exists():
            free = shutil.disk_usage(small_disk).free
            other.write_bytes(bytes(free - 2**13))

    with pytest.raises(HskdError, match=r"shard-00003.safetensors: cannot be written \(.*No space left on device"):
        setting.extract(small_disk / "store", shard_bytes=SMALL_SHARD, advance=fill_up)
    assert left_behind(small_disk / "store.partial") == {f"shard-0000{i}.safetensors" for i in range(3)}
    with pytest.raises(HskdError, match=r"the rest of this store .* needs"):
        setting.extract(small_disk / "store", shard_bytes=SMALL_SHARD)
    other.unlink()
    assert setting.extract(small_disk / "store", shard_bytes=SMALL_SHARD).manifest.shards == superset.manifest.shards

    other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**14))
    usage = Usage(2**30, 0, 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    command = ("store", "extract", "--teacher", setting.teacher_folder, "--out", small_disk / "full", *setting.options)
    assert "No space left on device" in refused(hskd(*command))
    assert not left_behind(small_disk / "full.partial")
    assert not (small_disk / "full").exists()


def test_a_file_that_may_not_grow(setting: Setting, superset: Store, tmp_path: Path, hskd: Hskd) -> None:
    """A quota: the system rejects the write (EFBIG), also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "derived"
    command = ("store", "derive", superset.folder, "--spec", "all_all_all", "--student-layers", 2, "--out", out)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
        result = hskd(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = refused(result)
    assert "shard-00000.safetensors: cannot be written (" in message and "File too large" in message
    assert not left_behind(tmp_path / "derived.partial")
    assert hskd(*command)[0] == 0


def test_a_folder_that_cannot_be_written(setting: Setting, superset: Store, tmp_path: Path, hskd: Hskd) -> None:
    (tmp_path / "file").write_text("in the way")
    command = ("store", "derive", superset.folder, "--spec", "1l_1t_0.1w", "--student-layers", 2)
    message = refused(hskd(*command, "--out", tmp_path / "file" / "store"))
    assert "cannot be written" in message
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


# ---- overflow


@pytest.fixture
def large(setting: Setting) -> tuple[Teacher, TokenizedSplit]:
    """A teacher whose embedding output exceeds the range of fp16."""
    model = make_bert()
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.mul_(2e5)
    return replace(setting.teacher, model=model, fingerprint="large"), setting.train


def test_overflow_is_refused(
    setting: Setting, large: tuple[Teacher, TokenizedSplit], tmp_path: Path, hskd: Hskd
) -> None:
    teacher, train = large
    with pytest.raises(HskdError, match="does not fit into fp16; extract with --precision bf16 or fp32"):
        extract(teacher, setting.task, train, Superset((0, 1), (1,), "fp16"), tmp_path / "fp16")
    assert not (tmp_path / "fp16").exists() and not left_behind(tmp_path / "fp16.partial")
    for precision in ("bf16", "fp32"):
        held = extract(teacher, setting.task, train, Superset((0, 1), (1,), precision), tmp_path / precision)
        assert held.states(np.arange(3)).hidden[0].abs().max() > torch.finfo(torch.float16).max
    command = ("store", "derive", tmp_path / "fp32", "--spec", "all_2t_0.1w,l_top=1", "--student-layers", 1)
    message = refused(hskd(*command, "--out", tmp_path / "derived"))
    assert "spec all_2t_0.1w,depth.l_top=1: a hidden state of example 0 (id " in message
    assert "does not fit into fp16" in message
    assert "ask for precision=bf16 or precision=fp32" in message
    assert not (tmp_path / "derived").exists() and not left_behind(tmp_path / "derived.partial")
    code, *_ = hskd(
        *command[:4], "all_2t_0.1w,l_top=1,precision=bf16", *command[5:], "--out", tmp_path / "bf16-derived"
    )
    assert code == 0


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_scale_beyond_fp16_is_refused(
    setting: Setting, superset: Store, tmp_path: Path, hskd: Hskd, precision: str
) -> None:
    """Every value of such a token would read back as NaN."""
    teacher = huge_for(setting, "minute")
    held = extract(teacher, setting.task, setting.train, Superset((0, 1), (1,)), tmp_path / "store")
    assert held.states(np.arange(len(held))).hidden[0].abs().max() > 127 * 65_504
    command = ("store", "derive", held.folder, "--student-layers", 1, "--out", tmp_path / "out")
    message = refused(hskd(*command, "--spec", f"all_all_0.1w,l_top=1,precision={precision}"))
    first = next(i for i, text in enumerate(decoded(setting)) if "minute" in text.split())
    assert f"a hidden state of example {first} (id {setting.train.ids[first]}) does not fit into {precision}" in message
    assert not (tmp_path / "out").exists() and not left_behind(tmp_path / "out.partial")
    spec = HSKSpec.parse(f"1l_2t_0.1w,precision={precision}")
    fitting = derive(superset, spec, 2, tmp_path / "fitting")
    assert fitting.kept(np.arange(len(fitting))).values.isfinite().all()


def decoded(setting: Setting) -> list[str]:
    split = setting.train
    return [
        setting.teacher.tokenizer.decode(split.input_ids[a:b], skip_special_tokens=True)
        for a, b in itertools.pairwise(split.offsets.tolist())
    ]


def huge_for(setting: Setting, word: str, number: float = 1e8) -> Teacher:
    """A teacher with huge outputs for one word, and normal ones otherwise."""
    model = make_bert()
    with torch.no_grad():
        norm = model.bert.embeddings.LayerNorm
        id_ = setting.teacher.tokenizer.convert_tokens_to_ids(word)
        assert id_ != setting.teacher.tokenizer.unk_token_id

    def blow_up(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where(seen["ids"][..., None] == id_, number, output)

    seen: dict[str, torch.Tensor] = {}
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(ids=kwargs["input_ids"]), with_kwargs=True)
    norm.register_forward_hook(blow_up)
    return replace(setting.teacher, model=model, fingerprint="huge")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e5])
def test_the_example_of_a_number_that_is_none_is_named(setting: Setting, tmp_path: Path, number: float) -> None:
    teacher = huge_for(setting, "minute", number)
    texts = decoded(setting)
    held = Superset((0, 1), (1,), "fp16")
    with pytest.raises(HskdError) as error:
        extract(teacher, setting.task, setting.train, held, tmp_path / "store", ExtractOptions(batch_size=5))
    named = re.search(r"example (\d+) of 64 \(id (-?\d+): '([^']+)'\)", str(error.value))
    assert named is not None, error.value
    row = int(named[1])
    assert "minute" in texts[row] and int(named[2]) == setting.train.ids[row] and texts[row].startswith(named[3])
    assert ("does not fit into fp16" if number == 1e5 else "hidden state 0 is not finite") in str(error.value)
    assert not (tmp_path / "store").exists() and not left_behind(tmp_path / "store.partial")


def test_large_numbers_whose_sum_is_not_finite() -> None:
    """Each value is finite, so a store in fp32 or bf16 holds them."""
    tokens = Tokens(np.array([5, 6]), np.array([0, 1, 3]), np.zeros(3, int), 0)
    states = torch.full((3, 4), 3e38)
    require_finite({1: states}, tokens)
    assert misfit({"values": states}) is None and misfit({"values": states.bfloat16()}) is None
    states[2, 3] = -torch.inf
    with pytest.raises(NotFiniteError, match="hidden state 1 is not finite") as error:
        require_finite({1: states}, tokens)
    assert error.value.example == 1
    assert misfit({"values": states}) == ("values", 2)


def test_outputs_that_are_not_finite(setting: Setting, tmp_path: Path) -> None:
    model = make_bert()
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    broken = replace(setting.teacher, model=model, fingerprint="broken")
    with pytest.raises(HskdError, match=r"the teacher's output for example 0 of 64 \(id .*\) is not finite"):
        extract(broken, setting.task, setting.train, Superset((0, 1), (1,)), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_teacher_that_is_not_finite(setting: Setting, tmp_path: Path) -> None:
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    broken = replace(setting.teacher, model=model, fingerprint="broken")
    with pytest.raises(HskdError, match="hidden state 1 is not finite"):
        extract(broken, setting.task, setting.train, Superset((0, 1), (1,)), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_shorter_maximum_length_is_another_store(setting: Setting, superset: Store, tmp_path: Path) -> None:
    data = load_task("custom", str(setting.data_folder), ["sentence"], "mood")
    short = tokenize(data, setting.teacher.tokenizer, tmp_path / "tokens", 6)["train"]
    with pytest.raises(MismatchError, match="holds another store already"):
        extract(setting.teacher, setting.task, short, Superset((0, 1, 2), (1, 2)), superset.folder)
