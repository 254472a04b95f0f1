"""The manifest of a store: its contents, and fingerprints of its sources, by which mismatches are detected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import fingerprint
from hskd.io import format_bytes, read_json, require_inside, write_json
from hskd.selectors import PRECISION
from hskd.selectors.base import describe
from hskd.spec import HSKSpec, Shape
from hskd.store_format.layout import (
    CODEC,
    MANIFEST,
    ArraySpec,
    derived_arrays,
    shard_name,
    superset_arrays,
    total_bytes,
    with_alignment,
    with_scores,
)

FORMAT = 2
MANIFEST_BYTES = 64 * 2**20
"""Maximum size of a manifest in bytes. The manifest of a store with 250,000 shards is smaller."""

# Upper bounds of the numbers in a manifest. Real stores stay far below them. Without bounds, a forged manifest could
# make the reader allocate all memory before it notices that something is wrong.
Layer = Annotated[int, Field(ge=0, le=10_000)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=2**16)]
MAX_LENGTH = 2**16 - 1
Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**60)]
Some = Annotated[int, Field(ge=1, le=2**60)]


class TargetArray(BaseModel):
    """The JSON form of an :class:`ArraySpec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per: Literal["example", "token"]
    dtype: Literal["float16", "bfloat16", "float32"]
    elements: Annotated[int, Field(ge=1, le=2**31)]

    @classmethod
    def of(cls, array: ArraySpec) -> TargetArray:
        """Return the JSON form of ``array``."""
        return cls.model_validate({**array._asdict(), "dtype": str(array.dtype).removeprefix("torch.")})

    @property
    def array(self) -> ArraySpec:
        """The described array."""
        import torch

        return ArraySpec(self.per, getattr(torch, self.dtype), self.elements)


class AlignmentNote(BaseModel):
    """Summary of the alignment between a store's tokens and those of a teacher with another tokenizer.

    The store's tokens come from the student's tokenizer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher_tokenizer: str
    """Fingerprint of the teacher's tokenizer."""
    tokens: Some
    """Number of tokens in all examples."""
    with_target: Count
    """Number of tokens that learn from one or more of the teacher's tokens."""
    means: Count
    """Number of tokens that learn from the mean of several of the teacher's tokens."""


class Origin(BaseModel):
    """The sources of a store. Two stores with equal origins describe the same examples under the same teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str
    """Fingerprint of the teacher's weights, configuration and label names."""
    tokenizer: str
    """Fingerprint of the tokenizer that produced the store's tokens."""
    data: str
    """Fingerprint of the token ids and example ids."""
    task: str
    head: str
    """Kind of the task's head."""
    label_names: tuple[str, ...]
    max_length: Length
    dtype: str
    """Precision of the teacher's forward pass: fp32, or bf16 for autocast."""
    alignment: Annotated[AlignmentNote | None, Field(exclude_if=lambda note: note is None)] = None
    """The alignment, if the teacher has another tokenizer; otherwise None."""


class ShardEntry(BaseModel):
    """One shard: its file name, its counts of examples, tokens and kept tokens, its size and checksum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    examples: Some
    tokens: Some
    kept: Count
    bytes: Some
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """A file other than a shard: its name, size and checksum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    bytes: Some
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The contents of ``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    kind: Literal["superset", "derived"]
    origin: Origin
    teacher_layers: Layers
    """``L_T``, excluding the embedding output."""
    teacher_width: Width
    """``d_T``."""
    vocab_size: Annotated[int, Field(ge=1, le=2**31 - 1)]
    special_ids: dict[Literal["cls", "sep", "pad"], TokenId]
    """The tokenizer's ids of ``cls``, ``sep`` and ``pad``."""
    layers: tuple[Layer, ...]
    """Superset: the teacher layers in the store. Derived: the student layers that learn."""
    mapped: tuple[Layer, ...]
    """The teacher layer that each of ``layers`` is mapped to."""
    attention_layers: tuple[Layer, ...] = ()
    """Superset: the attention layers (1-based) whose ``[CLS]`` row is in the store."""
    gradient_layers: Annotated[tuple[Layer, ...], Field(exclude_if=lambda layers: not layers)] = ()
    """Superset: the teacher layers with a score of how much the prediction depends on each token."""
    received_layers: Annotated[tuple[Layer, ...], Field(exclude_if=lambda layers: not layers)] = ()
    """Superset: the attention layers (1-based) with a score of how much attention each token receives."""
    gold_labels: Annotated[str | None, Field(exclude_if=lambda labels: labels is None)] = None
    """Fingerprint of the examples with their gold labels. A superset has it if it holds the loss of each label. A
    derived store has it if its examples were selected by that loss."""
    student_layers: Layers | None = None
    """Derived: ``L_S``, on which the layer mapping depends."""
    target: TargetArray
    """The array of the teacher's outputs."""
    precision: str
    spec: dict[str, Any] | None = None
    """Derived: the HSK spec."""
    fixed_neurons: tuple[int, ...] | None = None
    """Derived: the kept neurons, if every token keeps the same proper subset; otherwise None."""
    examples: Some
    shards: tuple[ShardEntry, ...] = ()
    codec: Annotated[FileEntry | None, Field(exclude_if=lambda entry: entry is None)] = None
    """Derived: the file of the codec, if the width selector learns one."""
    made_by: dict[str, str | int | float | None] = {}

    @property
    def plan(self) -> str:
        """Fingerprint of everything that is decided before the first shard is written."""
        return fingerprint(self.model_dump(mode="json", exclude={"shards", "codec", "made_by"}))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the plan and of every file's bytes. Equal stores have equal fingerprints."""
        return fingerprint([self.plan, [entry.sha256 for entry in self.files]])

    @property
    def files(self) -> tuple[ShardEntry | FileEntry, ...]:
        """Entries of all files except the manifest."""
        return self.shards if self.codec is None else (*self.shards, self.codec)

    @property
    def bytes(self) -> int:
        """Size of the store on disk in bytes, without the manifest."""
        return sum(entry.bytes for entry in self.files)

    @property
    def is_aligned(self) -> bool:
        """Whether the tokens come from another tokenizer than the teacher's."""
        return self.origin.alignment is not None

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays of every shard, by name."""
        target, length = self.target.array, self.origin.max_length
        if self.spec is not None and self.student_layers is not None:
            shape = self.shape(self.student_layers)
            return derived_arrays(HSKSpec.parse(self.spec), shape, length, target, self.is_aligned)
        arrays = superset_arrays(
            len(self.layers),
            len(self.attention_layers),
            self.teacher_width,
            target,
            PRECISION[self.precision](),  # type: ignore[call-arg]
            length,
            self.vocab_size,
        )
        arrays = with_scores(arrays, len(self.gradient_layers), len(self.received_layers), self.gold_labels is not None)
        return with_alignment(arrays, length) if self.is_aligned else arrays

    def shape(self, student_layers: int) -> Shape:
        """Return the sizes that a spec is applied to, for a student with ``student_layers`` layers."""
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
            HskdError: the folder holds no finished store, or the format has another version.
            CorruptionError: the file is damaged or not a manifest.
        """
        path = folder / MANIFEST
        if not path.is_file():
            unfinished = folder.with_name(folder.name + ".partial").is_dir()
            hint = "its extraction was not finished; run the same command again to resume" if unfinished else "no store"
            raise HskdError(f"{folder}: {hint} (there is no {MANIFEST}).")
        require_inside(folder, path)
        size = path.stat().st_size
        if size > MANIFEST_BYTES:
            raise CorruptionError(
                f"{path}: not a store manifest: it has {format_bytes(size)}, and a manifest has at most "
                f"{format_bytes(MANIFEST_BYTES)}; copy the store again, or extract it again."
            )
        return cls.of(read_json(path), str(path))

    @classmethod
    def of(cls, content: Any, path: str) -> Manifest:
        """Return the manifest in ``content``, the parsed JSON of a ``manifest.json``.

        Args:
            content: the parsed JSON.
            path: name of the file in messages.

        Raises:
            HskdError: the format has another version.
            CorruptionError: ``content`` is not a manifest, is damaged, or contradicts itself.
        """
        advice = "copy the store again, or extract it again"
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise HskdError(
                f"{path}: store format {_short(content.get('format'))} is not the format {FORMAT} that this version "
                "reads; extract it again."
            )
        try:
            if isinstance(content, dict):
                checksum = content.pop("checksum", None)
                if checksum != fingerprint(content):
                    raise CorruptionError(
                        f"{path}: its content does not match its checksum: it is damaged, or was edited; {advice}."
                    )
            manifest = cls.model_validate(content)
            files = [shard.file for shard in manifest.shards]
            shard_examples = sum(shard.examples for shard in manifest.shards)
            if shard_examples != manifest.examples or not files or files != [shard_name(i) for i in range(len(files))]:
                raise CorruptionError(
                    f"{path}: names {manifest.examples} examples, but {len(files)} shards with {shard_examples} "
                    f"examples: it is damaged; {advice}."
                )
        except (ValueError, RecursionError) as error:  # includes invalid Unicode and excessive nesting
            raise CorruptionError(f"{path}: not a store manifest: {_complaint(error)}; {advice}.") from None
        try:
            contradiction = manifest._contradiction()
        except HskdError as error:
            raise HskdError(f"{path}: {_short(error)}") from None
        if contradiction is not None:
            raise CorruptionError(f"{path}: {contradiction}: it is damaged, or was edited; {advice}.")
        return manifest

    def _contradiction(self) -> str | None:
        """Return a description of the first contradiction between fields; None if there is none.

        Raises:
            HskdError: the spec is invalid, or names a layer that the student or the teacher lacks.
        """
        if set(self.special_ids) != {"cls", "sep", "pad"}:
            return f"names the special tokens {', '.join(self.special_ids) or 'none'}, not cls, sep and pad"
        if (self.kind == "derived") != (self.spec is not None) or (self.spec is None) != (self.student_layers is None):
            return f"is of kind {self.kind}: a derived store has a spec and student layers, and a superset has neither"
        if self.spec is not None and self.student_layers is not None:
            spec = HSKSpec.parse(self.spec)
            tokens = getattr(spec.length, "k", "all")
            if isinstance(tokens, int) and tokens > 2**31 - 1:
                return f"its spec keeps {_short(tokens)} tokens of an example"
            layers = spec.layers(self.shape(self.student_layers))
            mask = spec.width.fixed(self.teacher_width)
            whole = mask is None or len(mask) == self.teacher_width
            declared = (self.layers, self.mapped, self.fixed_neurons, self.precision, self.attention_layers)
            if self.gradient_layers or self.received_layers:
                return "names layers of gradients or of attention received, which only a superset has"
            if self.shards and self.codec is None and self._needs_codec(spec):
                return "lacks the codec that its width selector learns"
            if (self.gold_labels is not None) != (spec.examples.needs_losses and not spec.examples.keeps_all):
                return "names gold labels although its examples were not selected by them, or the other way round"
            if self.codec is not None and (self.codec.file != CODEC or not self._needs_codec(spec)):
                return f"names a file {_short(self.codec.file)}, which its spec does not need"
            expected = (
                tuple(layer.student for layer in layers),
                tuple(layer.teacher for layer in layers),
                None if mask is None or whole else tuple(int(i) for i in mask),
                spec.precision.selector,
                (),
            )
            if declared != expected:
                return f"its layers, neurons or precision are not those of its spec {_short(spec.label)}"
        else:
            every, attention = range(self.teacher_layers + 1), range(1, self.teacher_layers + 1)
            named = (self.layers, self.attention_layers, self.gradient_layers, self.received_layers)
            ascending = all(list(layers) == sorted(set(layers)) for layers in named)
            among = set(self.layers) | set(self.gradient_layers) <= set(every)
            of_attention = {*self.attention_layers, *self.received_layers}
            if not ascending or not among or not of_attention <= set(attention):
                return (
                    f"its layers must be ascending, without repetition, and among the teacher's {self.teacher_layers}"
                )
            of_derived = self.fixed_neurons is not None or self.codec is not None
            if not self.layers or self.mapped != self.layers or of_derived:
                return "names layers or neurons that a superset cannot have"
        note = self.origin.alignment
        if note is not None and self.shards:
            tokens, kept = (sum(getattr(shard, name) for shard in self.shards) for name in ("tokens", "kept"))
            most = note.with_target
            if not note.means <= most <= tokens == note.tokens or kept > most or (self.spec is None and kept < most):
                return f"says that {most} of {note.tokens} tokens have a target, but its shards hold {kept} of {tokens}"
        arrays = self.arrays
        for shard in self.shards:
            least = total_bytes(arrays, shard.examples, shard.tokens, shard.kept)
            if not least <= shard.bytes or not shard.examples <= shard.tokens or not shard.kept <= shard.tokens:
                return (
                    f"says that {shard.file} holds {shard.examples} examples, {shard.tokens} tokens and {shard.kept} "
                    f"kept tokens in {shard.bytes} bytes, but they take {least}"
                )
        return None

    def _needs_codec(self, spec: HSKSpec) -> bool:
        return bool(spec.width.codec_layout(spec.precision, self.teacher_width))

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, including a checksum of its content."""
        content = self.model_dump(mode="json")
        write_json(folder / MANIFEST, content | {"checksum": fingerprint(content)})

    def require(self, where: Path, **expected: str | int | tuple[str, ...]) -> None:
        """Check that the store was made from the expected sources.

        Args:
            where: the store's folder, for the message.
            expected: fields of :class:`Origin` and their expected values.

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
            recorded = getattr(self.origin, field)
            if recorded != value:
                raise MismatchError(
                    f"{where}: this store was made from {names[field]}: {field} is {recorded!r} in the store and "
                    f"{value!r} here. Use the same {field} as the store, or extract a new store."
                )


def _complaint(error: Exception) -> str:
    try:
        return _short(describe(error) if isinstance(error, ValidationError) else error)
    except (ValueError, RecursionError):  # the value cannot be printed
        return "it holds a value that is nested too deep"


def _short(what: object) -> str:
    """Return a printable text of at most about 300 characters, because a forged manifest may hold any value."""
    try:
        text = str(what).encode(errors="backslashreplace").decode()
    except RecursionError:
        text = "nested too deep"
    return text if len(text) <= 300 else f"{text[:300]}..."
