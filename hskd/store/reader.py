"""Reading a store: memory-mapped shards, addressed by example id, whole batches gathered at once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.knowledge import KeptHSK, TeacherStates
from hskd.remote.copies import WORK, local_copy
from hskd.selectors import PRECISION, PrecisionSelector, Tokens
from hskd.spec import HSKSpec
from hskd.store_format.layout import TARGET, WORD_STARTS, ArraySpec, ragged_rows
from hskd.store_format.manifest import Manifest, ShardEntry


class Store:
    """A store on disk. Nothing is loaded but addresses; values are read through memory maps when asked for."""

    def __init__(self, folder: Path, manifest: Manifest, shards: list[dict[str, torch.Tensor]]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = shards
        self.example_ids = _joined(shards, "example_ids").astype(np.int64)
        """``(N,)``, in the order of the data set."""
        self.lengths = _joined(shards, "lengths").astype(np.int64)
        """Real tokens of each example, ``(N,)``."""
        self.counts = _joined(shards, "counts").astype(np.int64) if "counts" in shards[0] else self.lengths
        """Kept tokens of each example, ``(N,)``."""
        sizes = np.array([shard.examples for shard in manifest.shards])
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self._first = np.cumsum(sizes) - sizes
        self._per = {name: array.per for name, array in manifest.arrays.items()}

    @classmethod
    def open(cls, folder: str | Path, work: Path = WORK) -> Store:
        """Open the store in ``folder``; its checksums are compared by :meth:`verify`, not here.

        Args:
            folder: a folder, or a URL, which is copied into ``work`` first and compared with its checksums (see
                :func:`hskd.remote.fetch`).
            work: the work folder.

        Raises:
            HskdError: there is no finished store, or the URL cannot be reached.
            CorruptionError: a shard is missing, has another size than was written, cannot be read, or holds other
                arrays than the manifest says.
        """
        folder = local_copy(folder, work)
        manifest = Manifest.read(folder)
        shards = []
        for entry in manifest.shards:
            path = folder / entry.file
            if not path.is_file():
                raise CorruptionError(f"{path}: the shard is missing; copy the store again, or extract it again.")
            if path.stat().st_size != entry.bytes:
                raise CorruptionError(
                    f"{path}: {path.stat().st_size} bytes where {entry.bytes} were written; copy the store again, "
                    "or extract it again."
                )
            try:
                with safe_open(path, framework="pt") as file:
                    shards.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            except SafetensorError as error:
                raise CorruptionError(f"{path}: cannot be read ({error}); extract it again.") from None
            _require_arrays(path, shards[-1], manifest.arrays, entry)
        return cls(folder, manifest, shards)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process needs to open the store for itself: not the values."""
        return Store.open, (self.folder,)

    def verify(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            CorruptionError: names the first shard whose bytes are not those written.
        """
        for entry in self.manifest.shards:
            path = self.folder / entry.file
            found = file_sha256(path)
            if found != entry.sha256:
                raise CorruptionError(
                    f"{path}: its SHA-256 is {found[:16]}... where {entry.sha256[:16]}... was written: the file is "
                    "damaged; copy the store again, or extract it again."
                )

    @property
    def spec(self) -> HSKSpec | None:
        """What a derived store keeps; None for a superset."""
        return None if self.manifest.spec is None else HSKSpec.parse(self.manifest.spec)

    @cached_property
    def precision(self) -> PrecisionSelector:
        """How values are stored."""
        return PRECISION[self.manifest.precision]()  # type: ignore[call-arg]

    @cached_property
    def _sorted_ids(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.example_ids)
        return self.example_ids[order], order

    def rows(self, example_ids: np.ndarray) -> np.ndarray:
        """Where examples lie in the store, ``(B,)``.

        Raises:
            MismatchError: an example is not in the store.
        """
        ids, order = self._sorted_ids
        place = np.minimum(np.searchsorted(ids, example_ids), len(ids) - 1)
        missing = ids[place] != example_ids
        if missing.any():
            raise MismatchError(
                f"{self.folder}: {int(missing.sum())} of {len(example_ids)} examples are not in this store of "
                f"{len(ids)} (the first: id {int(example_ids[missing][0])}). It was extracted from other data, or from "
                "fewer examples; extract it from the data you train on."
            )
        return order[place]

    def require_tokens(self, tokens: Tokens) -> None:
        """Refuse data whose token ids are not those that the teacher saw.

        Raises:
            MismatchError: an example is missing, or its tokens differ.
        """
        rows = self.rows(tokens.example_ids)
        same_length = self.lengths[rows] == tokens.lengths
        if same_length.all() and np.array_equal(self.token_ids(rows), tokens.input_ids):
            return
        raise MismatchError(
            f"{self.folder}: examples have other tokens here than in the store "
            f"({int((~same_length).sum())} of {len(rows)} differ in length): the tokenizer or the maximum length "
            f"(the store's is {self.manifest.origin.max_length}) is another one. Use the store's, or extract again."
        )

    def targets(self, rows: np.ndarray) -> torch.Tensor:
        """The teacher's rows ``(R, C)`` for the examples in ``rows`` ``(B,)``, in their order.

        One row for each example, or one for each of its words where ``manifest.target.per`` says ``token``.
        """
        targets, starts = self.target_array(rows), self.word_starts(rows)
        return targets if starts is None else targets[torch.from_numpy(starts)]

    def target_array(self, rows: np.ndarray) -> torch.Tensor:
        """The targets of the examples as they are stored, where tokens that begin no word have a row too."""
        return self._gather(TARGET, rows)

    def word_starts(self, rows: np.ndarray) -> np.ndarray | None:
        """Which tokens of the examples begin a word, ``(M,)`` bool; None where the targets are not of words."""
        return self._gather(WORD_STARTS, rows).numpy().astype(bool) if WORD_STARTS in self._per else None

    def token_ids(self, rows: np.ndarray) -> np.ndarray:
        """Token ids of the examples, end to end, ``(M,)``."""
        return self._gather("token_ids", rows).numpy().astype(np.int64)

    def tokens(self, rows: np.ndarray) -> Tokens:
        """The examples' tokens, as the selectors see them."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        return Tokens(self.example_ids[rows], offsets, self.token_ids(rows), self.manifest.special_ids["sep"])

    def kept(self, rows: np.ndarray) -> KeptHSK:
        """The kept knowledge of the examples in ``rows`` ``(B,)``, in their order.

        Raises:
            HskdError: this is a superset, which keeps nothing in particular yet.
        """
        if self.manifest.kind != "derived":
            raise HskdError(f"{self.folder}: is a superset; derive a spec from it first (hskd store derive).")
        counts = torch.from_numpy(self.counts[rows])
        layers = len(self.manifest.layers)
        values = self._values(rows)
        if "positions" in self._shards[0]:
            positions = self._gather("positions", rows).long()
        else:
            place = torch.arange(len(values)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
            positions = place[:, None].expand(-1, layers)
        return KeptHSK(self.manifest.layers, counts, positions, values, self._neurons(rows, values.shape[2]))

    def _values(self, rows: np.ndarray) -> torch.Tensor:
        layers = len(self.manifest.layers)
        return self.precision.decode(
            {name: self._gather(name, rows).unflatten(1, (layers, -1)) for name in self.precision.layout(1)}
        )

    def _neurons(self, rows: np.ndarray, count: int) -> torch.Tensor | None:
        if self.manifest.fixed_neurons is not None:
            return torch.tensor(self.manifest.fixed_neurons)
        if "neurons" not in self._shards[0]:
            return None
        packed = self._gather("neurons", rows).unflatten(1, (len(self.manifest.layers), -1))
        return unpack_neurons(packed, self.manifest.teacher_width, count)

    def states(self, rows: np.ndarray) -> TeacherStates:
        """Everything a superset holds of the examples in ``rows``, as the teacher would give it.

        Raises:
            HskdError: this is not a superset.
        """
        if self.manifest.kind != "superset":
            raise HskdError(f"{self.folder}: holds one spec only; name the superset that it was derived from.")
        values = self._values(rows)
        attention = self.manifest.attention_layers
        shares = self._gather("attention", rows).numpy() if attention else np.empty((0, 0))
        return TeacherStates(
            tokens=self.tokens(rows),
            hidden={layer: values[:, i] for i, layer in enumerate(self.manifest.layers)},
            attention={layer: shares[:, i] for i, layer in enumerate(attention)},
        )

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        """Where each example's rows begin within its shard, for arrays of kept and of all tokens."""
        starts = {}
        for per, sizes in (("kept", self.counts), ("token", self.lengths)):
            running = np.cumsum(sizes) - sizes
            starts[per] = running - running[self._first][self._shard_of]
        return starts

    def _gather(self, name: str, rows: np.ndarray) -> torch.Tensor:
        """The rows of array ``name`` that belong to the examples ``rows``, end to end."""
        shards = self._shard_of[rows]
        per = self._per[name]
        if per == "example":
            index = rows - self._first[shards]
        else:
            starts = self._starts[per][rows]
            sizes = (self.counts if per == "kept" else self.lengths)[rows]
            index = ragged_rows(starts, sizes)
            shards = np.repeat(shards, sizes)
        dtype = self._shards[0][name].dtype

        def array(shard: int) -> torch.Tensor:
            # torch cannot write to chosen rows of uint16; the bits are the same.
            return self._shards[shard][name].view(torch.int16 if dtype == torch.uint16 else dtype)

        where = torch.from_numpy(index)
        if len(self._shards) == 1:
            return array(0)[where].view(dtype)
        out = torch.empty((len(index), *array(0).shape[1:]), dtype=array(0).dtype)
        for shard in np.unique(shards):  # of the thousands that a large store has
            mine = torch.from_numpy(np.flatnonzero(shards == shard))
            out[mine] = array(shard)[where[mine]]
        return out.view(dtype)


def _require_arrays(
    path: Path, shard: dict[str, torch.Tensor], arrays: dict[str, ArraySpec], entry: ShardEntry
) -> None:
    rows = {"example": entry.examples, "token": entry.tokens, "kept": entry.kept}
    expected = {name: (array.dtype, rows[array.per], array.elements) for name, array in arrays.items()}
    found = {name: (array.dtype, len(array), array[:1].numel()) for name, array in shard.items()}
    if found != expected:
        wrong = min(name for name in expected | found if expected.get(name) != found.get(name))
        raise CorruptionError(
            f"{path}: array {wrong} is {found.get(wrong, 'missing')} where the manifest says "
            f"{expected.get(wrong, 'none')} (type, rows, elements of a row); copy the store again, or extract it again."
        )


def pack_neurons(neurons: torch.Tensor, width: int, as_mask: bool) -> torch.Tensor:
    """Neuron indices ``(K, n, k)`` as stored: ``(K, n * bytes)`` bit masks, or ``(K, n * k)`` 16-bit indices."""
    if not as_mask:
        return neurons.flatten(1).to(torch.uint16)
    mask = torch.zeros((*neurons.shape[:2], width), dtype=torch.bool).scatter_(2, neurons, True)
    return torch.from_numpy(np.packbits(mask.numpy(), axis=2)).flatten(1)


def unpack_neurons(packed: torch.Tensor, width: int, count: int) -> torch.Tensor:
    """The inverse of :func:`pack_neurons`, from ``(K, n, ...)`` to indices ``(K, n, count)`` int64."""
    if packed.dtype == torch.uint16:
        return packed.long()
    bits = np.unpackbits(packed.numpy(), axis=2, count=width).view(bool)
    # One index into all of it, less where each mask begins: numpy finds it faster than one index a dimension.
    found = np.flatnonzero(bits).reshape(*bits.shape[:2], count)
    found -= np.arange(0, bits.size, width).reshape(*bits.shape[:2], 1)
    return torch.from_numpy(found)


def _joined(shards: list[dict[str, torch.Tensor]], name: str) -> np.ndarray:
    return np.concatenate([shard[name].numpy() for shard in shards])
