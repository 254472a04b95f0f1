"""Read a store: shards are memory-mapped, examples are addressed by id, and a batch is gathered in a few operations.

The first read of a shard in a process verifies the shard's checksum. This reads the file sequentially, so later
batches find it in the page cache.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import Stamp, file_sha256, known_sha256, remembered, take_over
from hskd.heads import Head, head_of
from hskd.heads.scores import entropies_of_tokens, example_means
from hskd.io import POINTER, is_lfs_pointer, require_inside
from hskd.knowledge import KeptHSK, Members, TeacherStates
from hskd.remote.copies import WORK, local_copy
from hskd.selectors import PRECISION, ExampleScores, ExamplesSelector, LengthSelector, PrecisionSelector, Tokens
from hskd.spec import HSKSpec
from hskd.store.decode import Decoder, StoredHSK
from hskd.store_format.layout import (
    ADDRESSES,
    CODEC,
    GOLD_LOSS,
    HAS_TARGET,
    TARGET,
    WORD_STARTS,
    ArraySpec,
    ragged_rows,
)
from hskd.store_format.manifest import Manifest, ShardEntry
from hskd.tasks import TokenizedSplit

_ADVICE = "copy the store again, or delete it and make it again"
_CHECKED_ROWS = 2**16
"""Rows of a shard whose positions and neurons are checked at a time."""


class Store:
    """An open store. It loads only ids and lengths, and reads values through memory maps on demand.

    The first method that reads a shard in a process verifies the shard's checksum, and raises
    :class:`CorruptionError` if it does not match. The attributes :attr:`example_ids`, :attr:`lengths` and
    :attr:`counts` are checked only against the manifest. If they are wrong, reading the shard's values raises.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        shards: list[dict[str, torch.Tensor]],
        codec: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.codec = codec or {}
        """The codec of the width selector, ``(n, ...)`` for each array; empty for selectors that learn nothing."""
        self._shards = shards
        # The working directory may change before a shard is read.
        self._paths = [folder.absolute() / entry.file for entry in manifest.shards]
        self._unverified = set(range(len(shards)))
        self.example_ids = _joined(shards, "example_ids").astype(np.int64)
        """Ids of the examples, in the order of the data set, ``(N,)``."""
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
        """Open the store in ``folder``. Shards are verified when they are first read, not here.

        Args:
            folder: a folder or a URL. A URL is first copied into ``work`` and verified (see
                :func:`hskd.remote.fetch`).
            work: the work folder.

        Raises:
            HskdError: the folder holds no finished store, the URL cannot be reached, or a shard is a link that leads
                out of the folder.
            CorruptionError: the manifest is damaged; the codec is damaged; or a shard is missing, has the wrong size,
                cannot be read, or holds other arrays, lengths or counts than the manifest says.
        """
        folder = local_copy(folder, work)
        manifest = Manifest.read(folder)
        arrays = manifest.arrays
        shards = [_opened(folder, entry, arrays, manifest.origin.max_length) for entry in manifest.shards]
        store = cls(folder, manifest, shards, None if manifest.codec is None else read_codec(folder, manifest))
        store._require_share()
        return store

    def __len__(self) -> int:
        return len(self.example_ids)

    def _require_share(self) -> None:
        """Check that the number of examples with hidden states is at least 1 and at most what the spec keeps."""
        if self.spec is not None and not self.spec.examples.keeps_all:
            kept, share = len(self.rows_with_hsk), self.spec.examples.count(len(self))
            if not 0 < kept <= share:
                raise CorruptionError(
                    f"{self.folder}: holds hidden states of {kept} examples, and its spec {self.spec.label} keeps "
                    f"those of {share}; {_ADVICE}."
                )

    @property
    def rows_with_hsk(self) -> np.ndarray:
        """Rows of the examples with hidden states, ascending: all rows, unless the spec keeps a share of them."""
        if self.spec is None or self.spec.examples.keeps_all:
            return np.arange(len(self))
        return np.flatnonzero(self.counts)

    @cached_property
    def head(self) -> Head:
        """The head of the store's task, which defines the targets.

        Raises:
            HskdError: the store names an unknown kind of head.
        """
        origin = self.manifest.origin
        return head_of(origin.head, origin.label_names).for_target(self.manifest.target.array)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder, the fingerprint and the checksums verified so far, and not the values."""
        digests = [entry for entry in map(remembered, self._paths) if entry is not None]
        return _opened_again, (self._paths[0].parent, self.manifest.fingerprint, digests)

    def verify(self) -> None:
        """Verify the checksum of every file, even if it was verified before.

        Raises:
            CorruptionError: names the first file that is damaged, cannot be read or has invalid contents.
        """
        for shard, (path, entry) in enumerate(zip(self._paths, self.manifest.shards, strict=True)):
            try:
                whole = file_sha256(path) == entry.sha256
            except OSError as error:
                raise _unreadable(path, error) from error
            self._require_whole(shard, whole)
        if self.manifest.codec is not None:
            read_codec(self.folder, self.manifest)

    def require_whole(self, rows: np.ndarray | None = None) -> None:
        """Verify the shards that hold the examples in ``rows``, except those this process has verified already.

        Call it before you fork processes that read the store. Otherwise each of them verifies the shards itself.

        Args:
            rows: examples ``(B,)``; None for all.

        Raises:
            CorruptionError: names the first shard that is damaged, cannot be read or has invalid contents.
        """
        if self._unverified:
            touched = self._unverified if rows is None else self._unverified.intersection(self._shard_of[rows].tolist())
            for shard in sorted(touched):
                try:
                    whole = known_sha256(self._paths[shard]) == self.manifest.shards[shard].sha256
                except OSError as error:
                    raise _unreadable(self._paths[shard], error) from error
                self._require_whole(shard, whole)

    def _require_whole(self, shard: int, whole: bool) -> None:
        path = self.folder / self.manifest.shards[shard].file
        if not whole:
            raise CorruptionError(
                f"{path}: its SHA-256 is not the one in the manifest: the file is damaged; {_ADVICE}."
            )
        fault = _fault(self._shards[shard], self.manifest)
        if fault is not None:
            raise CorruptionError(f"{path}: {fault}, so no version of hskd wrote it; {_ADVICE}.")
        self._unverified.discard(shard)

    @cached_property
    def spec(self) -> HSKSpec | None:
        """The spec of a derived store; None for a superset."""
        return None if self.manifest.spec is None else HSKSpec.parse(self.manifest.spec)

    @cached_property
    def precision(self) -> PrecisionSelector:
        """The precision of the stored values."""
        return PRECISION[self.manifest.precision]()  # type: ignore[call-arg]

    @cached_property
    def _sorted_ids(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.example_ids)
        return self.example_ids[order], order

    def rows(self, example_ids: np.ndarray) -> np.ndarray:
        """Return the rows of examples in the store, ``(B,)``.

        Raises:
            MismatchError: an example is not in the store.
            CorruptionError: an example is missing, and the store is damaged, which may be the cause.
        """
        ids, order = self._sorted_ids
        place = np.minimum(np.searchsorted(ids, example_ids), len(ids) - 1)
        missing = ids[place] != example_ids
        if missing.any():
            self.require_whole()
            raise MismatchError(
                f"{self.folder}: {int(missing.sum())} of {len(example_ids)} examples are not in this store of "
                f"{len(ids)} (the first: id {int(example_ids[missing][0])}). It was extracted from other data, or from "
                "fewer examples; extract it from the data you train on."
            )
        return order[place]

    def require_tokens(self, tokens: Tokens) -> None:
        """Check that the examples have the same token ids as in the store.

        If all token ids are equal, no checksum needs to be verified. Otherwise the checksums are verified to tell
        other data from a damaged store.

        Raises:
            MismatchError: an example is missing, or its tokens differ.
            CorruptionError: they differ, and the store is damaged.
        """
        rows = self.rows(tokens.example_ids)
        same_length = self.lengths[rows] == tokens.lengths
        if same_length.all() and np.array_equal(self._token_ids(rows), tokens.input_ids):
            return
        self.require_whole(rows)
        raise MismatchError(
            f"{self.folder}: examples have other tokens here than in the store "
            f"({int((~same_length).sum())} of {len(rows)} differ in length): the tokenizer or the maximum length "
            f"(the store's is {self.manifest.origin.max_length}) differs. Use the store's, or extract again."
        )

    def require_words(self, split: TokenizedSplit) -> None:
        """Check that the same tokens begin words as in the store, whose targets belong to these tokens.

        Raises:
            MismatchError: an example is missing, or its words differ.
            CorruptionError: the store is damaged.
        """
        starts = self.word_starts(self.rows(split.ids))
        if starts is None or split.word_starts is None:
            if starts is None and split.word_starts is None:
                return
            holds, asked = ("examples", "words") if starts is None else ("words", "examples")
            raise MismatchError(
                f"{self.folder}: holds the teacher's outputs for {holds}, and those for {asked} are needed; extract it "
                "for this task."
            )
        if not np.array_equal(starts, split.word_starts):
            raise MismatchError(
                f"{self.folder}: other tokens begin words here than in the store, although the token ids are the same: "
                "the texts differ in white space. Use the texts that the store was extracted from, or extract again."
            )

    def targets(self, rows: np.ndarray) -> torch.Tensor:
        """Return the teacher's outputs ``(R, C)`` for the examples in ``rows`` ``(B,)``, in their order.

        There is one output row per example, or one per word if ``manifest.target.per`` is ``token``.
        """
        targets, starts = self.target_array(rows), self.word_starts(rows)
        return targets if starts is None else targets[torch.from_numpy(starts)]

    def target_array(self, rows: np.ndarray) -> torch.Tensor:
        """Return the targets as stored: unlike :meth:`targets`, with a row for tokens that begin no word."""
        self.require_whole(rows)
        return self._gather(TARGET, rows)

    def word_starts(self, rows: np.ndarray) -> np.ndarray | None:
        """Return which tokens of the examples begin a word, ``(M,)`` bool; None if targets do not belong to words."""
        if WORD_STARTS in self._per:
            self.require_whole(rows)
        return self._word_starts(rows)

    def _word_starts(self, rows: np.ndarray) -> np.ndarray | None:
        return self._gather(WORD_STARTS, rows).numpy().astype(bool) if WORD_STARTS in self._per else None

    def token_ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the concatenated token ids of the examples, ``(M,)``."""
        self.require_whole(rows)
        return self._token_ids(rows)

    def _token_ids(self, rows: np.ndarray) -> np.ndarray:
        return self._gather("token_ids", rows).numpy().astype(np.int64)

    def has_target(self, rows: np.ndarray) -> np.ndarray | None:
        """Return which tokens of the examples have hidden states to learn from, ``(M,)`` bool; None if all have."""
        if HAS_TARGET not in self._per:
            return None
        self.require_whole(rows)
        return self._gather(HAS_TARGET, rows).numpy().astype(bool)

    def every_token(self, rows: np.ndarray) -> Tokens:
        """Return all tokens of the examples, with or without hidden states to learn from."""
        self.require_whole(rows)
        return self._tokens(rows)

    def tokens(self, rows: np.ndarray, whole: bool = True) -> Tokens:
        """Return the tokens of the examples that have hidden states to learn from, which are what selectors see.

        Args:
            rows: the examples, ``(B,)``.
            whole: whether to verify checksums. Pass False to plan work that later reads the same examples.
        """
        if whole:
            self.require_whole(rows)
        tokens = self._tokens(rows)
        if HAS_TARGET not in self._per:
            return tokens
        return tokens.take(np.flatnonzero(self._gather(HAS_TARGET, rows).numpy()))

    def _tokens(self, rows: np.ndarray) -> Tokens:
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        starts = self._word_starts(rows)
        ids, sep_id = self._token_ids(rows), self.manifest.special_ids["sep"]
        return Tokens(self.example_ids[rows], offsets, ids, sep_id, word_starts=starts)

    def kept(self, rows: np.ndarray) -> KeptHSK:
        """Return the kept knowledge of the examples in ``rows`` ``(B,)``, in their order.

        Raises:
            HskdError: this is a superset, from which no spec has been derived yet; or the spec keeps a share of the
                examples, and one of ``rows`` is not among them.
        """
        self.require_kept(rows)
        self.require_whole(rows)
        return self._decoder.kept(self._stored(rows))

    def require_kept(self, rows: np.ndarray) -> None:
        """Check that the store holds kept knowledge of the examples in ``rows`` (see :meth:`kept`)."""
        if self.manifest.kind != "derived":
            raise HskdError(f"{self.folder}: is a superset; derive a spec from it first (hskd store derive).")
        if self.spec is not None and not self.spec.examples.keeps_all and not self.counts[rows].all():
            raise HskdError(
                f"{self.folder}: {self.spec.label} keeps hidden states of {len(self.rows_with_hsk)} of {len(self)} "
                f"examples, and not of id {int(self.example_ids[rows][self.counts[rows] == 0][0])}; ask for those at "
                "rows_with_hsk, as the HSK stage of a trial does."
            )

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.manifest, self.codec, torch.device("cpu"))

    def _stored(self, rows: np.ndarray) -> StoredHSK:
        arrays = {name: self._gather(name, rows) for name in self.kept_arrays}
        positions = self.implied_positions(rows)
        if positions is not None:
            arrays["positions"] = positions
        counts = self.counts[rows]
        return StoredHSK(torch.from_numpy(counts), int(counts.max(initial=0)), arrays, self.members(rows))

    @property
    def kept_arrays(self) -> list[str]:
        """Names of the arrays with a row per kept token."""
        return [name for name, per in self._per.items() if per == "kept"]

    def implied_positions(self, rows: np.ndarray) -> torch.Tensor | None:
        """Return the positions of the kept tokens if they are those of all tokens with a target, ``(K, 1)``.

        The result is None if the store holds the positions, or if those of each example count from 0.
        """
        if "positions" in self._per or HAS_TARGET not in self._per or self.spec is None:
            return None
        if not self.spec.length.keeps_all:
            return None
        return torch.from_numpy(self.tokens(rows).position)[:, None]

    def members(self, rows: np.ndarray) -> Members | None:
        """Return the tokens that are averaged into each kept token; None if kept tokens are not averages."""
        return Members.of(self.spec, self.tokens(rows)) if self.spec is not None and self.averages else None

    @property
    def averages(self) -> bool:
        """Whether kept tokens are averages of tokens."""
        return self.spec is not None and type(self.spec.length).members is not LengthSelector.members

    def placed(self, name: str, device: torch.device) -> torch.Tensor:
        """Return the rows of array ``name`` of all examples on ``device``, copied there shard by shard."""
        self.require_whole()
        parts = [shard[name] for shard in self._shards]
        whole = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype, device=device)
        for place, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
            place.copy_(part)
        return whole

    def example_scores(self, selector: ExamplesSelector) -> ExampleScores:
        """Return the scores of all examples that ``selector`` ranks by.

        Raises:
            HskdError: the store does not hold these scores, or they are undefined for this kind of head.
        """
        losses = entropies = None
        rows = np.arange(len(self))
        if selector.needs_losses and not selector.keeps_all:
            if self.manifest.kind != "superset" or self.manifest.gold_labels is None:
                raise HskdError(
                    f"examples={selector.selector}: ranks examples by the loss of their gold label under the teacher, "
                    f"which {self.folder} does not hold; extract a superset with --gold-losses."
                )
            self.require_whole()
            losses = self._gather(GOLD_LOSS, rows)[:, 0].double().numpy()
        if selector.needs_entropies and not selector.keeps_all:
            starts = self.word_starts(rows)
            counts = np.ones(len(self), np.int64)
            if starts is not None:
                counts = np.bincount(np.repeat(rows, self.lengths)[starts], minlength=len(self))
            entropies = example_means(self.head.entropies(self.targets(rows)), counts)
        return ExampleScores(self.example_ids, losses, entropies)

    def states(self, rows: np.ndarray, entropies: bool = False) -> TeacherStates:
        """Return everything that a superset holds for the examples in ``rows``, as the teacher would give it.

        Args:
            rows: the examples, ``(B,)``.
            entropies: whether to add the entropy of each token's prediction, if the teacher predicts words.

        Raises:
            HskdError: this is not a superset.
        """
        if self.manifest.kind != "superset":
            raise HskdError(f"{self.folder}: holds one spec only; name the superset that it was derived from.")
        self.require_whole(rows)
        names = self.precision.layout(1)
        arrays = {name: self._gather(name, rows).unflatten(1, (len(self.manifest.layers), -1)) for name in names}
        values = self.precision.decode(arrays, self.manifest.teacher_width)
        attention = self.manifest.attention_layers
        shares = self._gather("attention", rows).numpy() if attention else np.empty((0, 0))
        gradients = self.manifest.gradient_layers
        scores = self._gather("gradient", rows).numpy() if gradients else np.empty((0, 0))
        received_layers = self.manifest.received_layers
        received = self._gather("received", rows).numpy() if received_layers else np.empty((0, 0))
        tokens = self.tokens(rows)
        entropy = None
        if entropies and tokens.word_starts is not None:
            entropy = entropies_of_tokens(self.head, self.targets(rows), tokens.word_starts)
        return TeacherStates(
            tokens=tokens,
            hidden={layer: values[:, i] for i, layer in enumerate(self.manifest.layers)},
            attention={layer: shares[:, i] for i, layer in enumerate(attention)},
            gradient={layer: scores[:, i] for i, layer in enumerate(gradients)},
            received={layer: received[:, i] for i, layer in enumerate(received_layers)},
            entropy=entropy,
        )

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        """The first row of each example within its shard, for arrays per kept token and per token, ``(N,)`` each."""
        starts = {}
        for per, sizes in (("kept", self.counts), ("token", self.lengths)):
            running = np.cumsum(sizes) - sizes
            starts[per] = running - running[self._first][self._shard_of]
        return starts

    def _gather(self, name: str, rows: np.ndarray) -> torch.Tensor:
        """Return the concatenated rows of array ``name`` that belong to the examples ``rows``."""
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
            return indexable(self._shards[shard][name])

        where = torch.from_numpy(index)
        if len(self._shards) == 1:
            return array(0)[where].view(dtype)
        out = torch.empty((len(index), *array(0).shape[1:]), dtype=array(0).dtype)
        for shard in np.unique(shards):  # A large store has thousands of shards, and a batch touches few.
            in_shard = torch.from_numpy(np.flatnonzero(shards == shard))
            out[in_shard] = array(shard)[where[in_shard]]
        return out.view(dtype)


def indexable(array: torch.Tensor) -> torch.Tensor:
    """Return a view of ``array`` whose rows can be indexed and assigned; view the result as the array's type again."""
    # torch has no indexed assignment for uint16. A view as int16 has the same bits.
    return array.view(torch.int16) if array.dtype == torch.uint16 else array


def _opened_again(folder: Path, fingerprint: str, digests: list[tuple[Stamp, str]]) -> Store:
    """Open a store again after unpickling, in another process or later.

    Raises:
        MismatchError: the folder holds another store by now.
        HskdError: see :meth:`Store.open`.
    """
    take_over(digests)
    store = Store.open(folder)
    if store.manifest.fingerprint != fingerprint:
        raise MismatchError(f"{folder}: the store has changed since it was pickled; open it again.")
    return store


def _opened(folder: Path, entry: ShardEntry, arrays: dict[str, ArraySpec], max_length: int) -> dict[str, torch.Tensor]:
    """Return the memory-mapped arrays of a shard, after checking their names, types, shapes and lengths."""
    path = folder / entry.file
    if not path.is_file():
        raise CorruptionError(f"{path}: the shard is missing; {_ADVICE}.")
    require_inside(folder, path)
    size = path.stat().st_size
    if size != entry.bytes:
        if is_lfs_pointer(path):
            raise CorruptionError(f"{path}: {POINTER}.")
        raise CorruptionError(f"{path}: {size} bytes where {entry.bytes} were written; {_ADVICE}.")
    try:
        with safe_open(path, framework="pt") as file:
            shard = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        raise _unreadable(path, error) from None
    _require_arrays(path, shard, arrays, entry)
    lengths = shard["lengths"].to(torch.int64)
    counts = shard["counts"].to(torch.int64) if "counts" in shard else lengths
    for name, sizes, total in (("lengths", lengths, entry.tokens), ("counts", counts, entry.kept)):
        if int(sizes.sum()) != total:
            raise CorruptionError(
                f"{path}: its {name} add up to {int(sizes.sum())} where {total} were written; {_ADVICE}."
            )
    if int(lengths.min()) < 1 or int(lengths.max()) > max_length or bool((counts > lengths).any()):
        raise CorruptionError(
            f"{path}: holds an example with no tokens, with more than {max_length}, or with more kept tokens than "
            f"tokens; {_ADVICE}."
        )
    return shard


def _unreadable(path: Path, error: Exception) -> CorruptionError:
    return CorruptionError(f"{path}: cannot be read ({error}); {_ADVICE}.")


def _require_arrays(
    path: Path, shard: dict[str, torch.Tensor], arrays: dict[str, ArraySpec], entry: ShardEntry
) -> None:
    rows = {"example": entry.examples, "token": entry.tokens, "kept": entry.kept}
    expected = {
        name: (array.dtype, (rows[array.per],) if name in ADDRESSES else (rows[array.per], array.elements))
        for name, array in arrays.items()
    }
    stored = {name: (array.dtype, tuple(array.shape)) for name, array in shard.items()}
    if stored != expected:
        wrong = min(name for name in expected | stored if expected.get(name) != stored.get(name))
        raise CorruptionError(
            f"{path}: array {wrong[:100]} is {stored.get(wrong, 'missing')} where the manifest says "
            f"{expected.get(wrong, 'none')} (type, shape); {_ADVICE}."
        )


def _fault(shard: dict[str, torch.Tensor], manifest: Manifest) -> str | None:
    """Return a description of the first invalid value in a shard, beyond its lengths and counts; None if all are valid.

    A matching checksum proves only that the file has not changed. It does not protect against a malicious writer.
    """
    token_ids = shard["token_ids"].numpy()
    if int(token_ids.min()) < 0 or int(token_ids.max()) >= manifest.vocab_size:
        return f"holds token ids that are not among the {manifest.vocab_size} of the vocabulary"
    if WORD_STARTS in shard:
        starts = shard[WORD_STARTS].numpy()
        ends = np.cumsum(shard["lengths"].numpy().astype(np.int64))
        if int(starts.max()) > 1 or bool(starts[np.concatenate([[0], ends[:-1]])].any()):
            return "holds word starts that are neither 0 nor 1, or one at the first token of an example"
    counts = shard.get("counts", shard["lengths"]).numpy().astype(np.int64)
    if HAS_TARGET in shard:
        targets = shard[HAS_TARGET].numpy()
        ends = np.cumsum(shard["lengths"].numpy().astype(np.int64))
        per_example = np.add.reduceat(targets.astype(np.int64), np.concatenate([[0], ends[:-1]]))
        spec = None if manifest.spec is None else HSKSpec.parse(manifest.spec)
        every = spec is None or spec.length.keeps_all
        # An example that the spec does not keep has no kept tokens.
        short = (counts < per_example) & ((counts > 0) | (spec is None or spec.examples.keeps_all))
        if int(targets.max()) > 1 or bool((counts > per_example).any()) or (every and bool(short.any())):
            return "its count of tokens with a target is wrong"
    lengths = np.repeat(shard["lengths"].numpy(), counts)
    positions, neurons = (shard[name].numpy() if name in shard else None for name in ("positions", "neurons"))
    for start in range(0, len(lengths), _CHECKED_ROWS):
        rows = slice(start, start + _CHECKED_ROWS)
        if positions is not None and bool((positions[rows] >= lengths[rows, None]).any()):
            return "holds positions beyond the end of their example"
        if neurons is not None and not _neurons_fit(neurons[rows], manifest):
            return f"holds neurons outside the teacher's {manifest.teacher_width}, or too few or too many neurons"
    return None


def _neurons_fit(packed: np.ndarray, manifest: Manifest) -> bool:
    """Return whether packed neurons ``(K, n * elements)`` decode to the right number of the teacher's neurons."""
    width, count = manifest.teacher_width, HSKSpec.parse(manifest.spec or {}).width.count(manifest.teacher_width)
    if packed.dtype == np.uint16:
        return bool((packed < width).all())
    masks = packed.reshape(len(packed), len(manifest.layers), -1)
    beyond = 8 * masks.shape[2] - width
    return bool((np.bitwise_count(masks).sum(2, dtype=np.int64) == count).all()) and not bool(
        (masks[..., -1] & (2**beyond - 1)).any()
    )


def read_codec(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Read and verify the codec of a derived store, ``(n, ...)`` for each array.

    Raises:
        HskdError: the file is a link that leads out of the folder.
        CorruptionError: the file is missing, damaged, or holds other arrays than the spec needs.
    """
    path, entry, spec = folder / CODEC, manifest.codec, HSKSpec.parse(manifest.spec or {})
    try:
        whole = entry is not None and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256
    except OSError as error:
        raise _unreadable(path, error) from error
    if not whole:
        raise CorruptionError(f"{path}: its size or SHA-256 is not the one in the manifest: it is damaged; {_ADVICE}.")
    require_inside(folder, path)
    try:
        codec = load_file(path)
    except SafetensorError as error:
        raise CorruptionError(f"{path}: cannot be read ({error}); {_ADVICE}.") from None
    expected = {
        name: (dtype, (len(manifest.layers), *sizes))
        for name, (dtype, sizes) in spec.width.codec_layout(spec.precision, manifest.teacher_width).items()
    }
    if {name: (array.dtype, tuple(array.shape)) for name, array in codec.items()} != expected:
        raise CorruptionError(f"{path}: holds other arrays than the spec {spec.label} needs; {_ADVICE}.")
    return codec


def _joined(shards: list[dict[str, torch.Tensor]], name: str) -> np.ndarray:
    return np.concatenate([shard[name].numpy() for shard in shards])
