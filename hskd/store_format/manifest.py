"""The manifest: what a store holds and what it was made from. Its fingerprints are what a mismatch is found by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.io import read_json, write_json
from hskd.selectors import PRECISION
from hskd.selectors.base import describe
from hskd.spec import HSKSpec, Shape
from hskd.store_format.layout import MANIFEST, ArraySpec, derived_arrays, shard_name, superset_arrays, with_gradients

FORMAT = 2


class TargetArray(BaseModel):
    """An :class:`ArraySpec` as JSON holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per: Literal["example", "token"]
    dtype: Literal["float16", "bfloat16", "float32"]
    elements: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, array: ArraySpec) -> TargetArray:
        """The JSON form of ``array``."""
        return cls.model_validate({**array._asdict(), "dtype": str(array.dtype).removeprefix("torch.")})

    @property
    def array(self) -> ArraySpec:
        """The array that this describes."""
        import torch

        return ArraySpec(self.per, getattr(torch, self.dtype), self.elements)


class Origin(BaseModel):
    """What a store was computed from; two stores of one origin describe the same examples of the same teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str
    """Fingerprint of the teacher's weights, configuration and label names."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    data: str
    """Fingerprint of the token ids and example ids."""
    task: str
    head: str
    """Kind of the task's head."""
    label_names: tuple[str, ...]
    max_length: int
    dtype: str
    """Precision of the teacher's forward pass: fp32, or bf16 autocast."""


class ShardEntry(BaseModel):
    """One shard: its file, how many examples it holds, its size and checksum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    examples: int
    tokens: int
    kept: int
    bytes: int
    sha256: str


class FileEntry(BaseModel):
    """A file beside the shards: its size and checksum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The contents of ``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    kind: Literal["superset", "derived"]
    origin: Origin
    teacher_layers: int
    """``L_T``, without the embedding output."""
    teacher_width: int
    """``d_T``."""
    vocab_size: int
    special_ids: dict[str, int]
    """The tokenizer's ids of ``cls``, ``sep`` and ``pad``."""
    layers: tuple[int, ...]
    """Superset: the teacher layers held. Derived: the student layers that learn."""
    mapped: tuple[int, ...]
    """The teacher layer behind each of ``layers``."""
    attention_layers: tuple[int, ...] = ()
    """Superset: the attention layers (1-based) whose ``[CLS]`` row is held."""
    gradient_layers: Annotated[tuple[int, ...], Field(exclude_if=lambda layers: not layers)] = ()
    """Superset: the teacher layers for which it is held how much the prediction depends on each token."""
    student_layers: int | None = None
    """Derived: ``L_S``, which the layer mapping depends on."""
    target: TargetArray
    """What the store holds of the teacher's outputs."""
    precision: str
    spec: dict[str, Any] | None = None
    """Derived: the HSK spec."""
    fixed_neurons: tuple[int, ...] | None = None
    """Derived: the neurons kept in every token, where they are the same in all and not all are kept."""
    examples: int
    shards: tuple[ShardEntry, ...] = ()
    codec: Annotated[FileEntry | None, Field(exclude_if=lambda entry: entry is None)] = None
    """Derived: what is held once for all examples, where the width selector has learnt something."""
    made_by: dict[str, Any] = {}

    @property
    def plan(self) -> str:
        """Fingerprint of all that was decided before the first shard was written."""
        return fingerprint(self.model_dump(mode="json", exclude={"shards", "codec", "made_by"}))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the plan and of every file's bytes: equal stores have equal fingerprints."""
        return fingerprint([self.plan, [entry.sha256 for entry in self.files]])

    @property
    def files(self) -> tuple[ShardEntry | FileEntry, ...]:
        """Every file but the manifest."""
        return self.shards if self.codec is None else (*self.shards, self.codec)

    @property
    def bytes(self) -> int:
        """Size of the store on disk, the manifest apart."""
        return sum(entry.bytes for entry in self.files)

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays that every shard holds."""
        target, length = self.target.array, self.origin.max_length
        if self.spec is not None and self.student_layers is not None:
            return derived_arrays(HSKSpec.parse(self.spec), self.shape(self.student_layers), length, target)
        arrays = superset_arrays(
            len(self.layers),
            len(self.attention_layers),
            self.teacher_width,
            target,
            PRECISION[self.precision](),  # type: ignore[call-arg]
            length,
            self.vocab_size,
        )
        return with_gradients(arrays, len(self.gradient_layers))

    def shape(self, student_layers: int) -> Shape:
        """The sizes that a spec needs, for a student of ``student_layers`` layers."""
        return Shape(
            student_layers=student_layers,
            teacher_layers=self.teacher_layers,
            teacher_width=self.teacher_width,
            vocab_size=self.vocab_size,
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the store in ``folder``.

        Raises:
            HskdError: there is no finished store there.
            CorruptionError: the manifest is not one.
        """
        path = folder / MANIFEST
        if not path.is_file():
            unfinished = folder.with_name(folder.name + ".partial").is_dir()
            hint = "its extraction was not finished; run the same command again to go on" if unfinished else "no store"
            raise HskdError(f"{folder}: {hint} (there is no {MANIFEST}).")
        return cls.of(read_json(path), str(path))

    @classmethod
    def of(cls, content: Any, path: str) -> Manifest:
        """The manifest that the JSON ``content`` of a ``manifest.json`` says; ``path`` names it in messages.

        Raises:
            HskdError: another version of the format.
            CorruptionError: it is not a manifest, or not as it was written.
        """
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise HskdError(
                f"{path}: store format {content.get('format')} is not the format {FORMAT} that this version reads; "
                "extract it again."
            )
        if isinstance(content, dict):
            checksum = content.pop("checksum", None)
            if checksum != fingerprint(content):
                raise CorruptionError(
                    f"{path}: its content is not what its checksum says: it is damaged, or was edited; copy the store "
                    "again, or extract it again."
                )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            raise CorruptionError(f"{path}: not a store manifest: {describe(error)}.") from None
        files = [shard.file for shard in manifest.shards]
        held = sum(shard.examples for shard in manifest.shards)
        if held != manifest.examples or not files or files != [shard_name(i) for i in range(len(files))]:
            raise CorruptionError(
                f"{path}: names {manifest.examples} examples, and {len(files)} shards of {held}: it is damaged; copy "
                "the store again, or extract it again."
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, with a checksum of its own."""
        content = self.model_dump(mode="json")
        write_json(folder / MANIFEST, content | {"checksum": fingerprint(content)})

    def require(self, where: Path, **expected: str | int | tuple[str, ...]) -> None:
        """Refuse a store that was made from something else.

        Args:
            where: the store's folder, for the message.
            expected: fields of :class:`Origin` with the values that they must have.

        Raises:
            MismatchError: names the first field that differs, both values, and what to do.
        """
        names = {
            "teacher": "another teacher",
            "tokenizer": "another tokenizer",
            "data": "another data set",
            "task": "another task",
            "head": "a task with another kind of prediction",
            "label_names": "other label names",
            "max_length": "another maximum length",
        }
        for field, value in expected.items():
            found = getattr(self.origin, field)
            if found != value:
                raise MismatchError(
                    f"{where}: this store was made from {names[field]}: {field} is {found!r} in the store and "
                    f"{value!r} here. Use the {field} that it was made from, or extract a new store."
                )
