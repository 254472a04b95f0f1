"""Width as codes: a kept token is a byte for each of a few codebooks, and is decoded to all its neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field
from typing_extensions import override

from hskd.selectors.base import LayerView, mix
from hskd.selectors.basis import one_thread
from hskd.selectors.precision import Layout, PrecisionSelector
from hskd.selectors.width import WIDTH, Codec, Fitter, WidthSelector

if TYPE_CHECKING:
    import numpy as np
    import torch

VECTORS_PER_ENTRY = 64
"""Tokens that a codebook learns from, for each of its entries; they are drawn where there are more."""
_ROUNDS = 10
"""Rounds of k-means. On hidden states of all-MiniLM-L6-v2, 25 rounds leave 1 % less error and take twice the time."""
_ROWS = 1024
"""Vectors whose distances are computed at once: with 256 entries, these stay in a core's cache."""

T = TypeVar("T")
R = TypeVar("R")


class CodebookWidth(WidthSelector):
    """Base of the selectors that keep one byte for each of ``max(1, floor(w * d_T))`` codebooks.

    Codebooks are learnt by k-means from the kept tokens of the training examples, for each layer, and stored once. A
    code's byte does not depend on the precision, which is that of the codebooks.
    """

    entries: Annotated[int, Field(ge=2, le=256)] = 256
    """Entries of a codebook."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the tokens that are learnt from, and where k-means begins."""

    @override
    def check(self, precision: PrecisionSelector) -> None:
        if set(precision.layout(1)) != {"values"} or not precision.dtype.is_floating_point:
            raise ValueError(
                f"width={self.selector} keeps codes of one byte, and precision is that of the codebooks: fp16, bf16 or "
                f"fp32 (got {precision.selector})"
            )

    @override
    def fixed(self, width: int) -> np.ndarray:
        """Every neuron takes part."""
        import numpy as np

        return np.arange(width)

    @override
    def layout(self, precision: PrecisionSelector, width: int) -> Layout:
        import torch

        return {"values": (torch.uint8, self.count(width))}


@WIDTH.register
class ProductCodes(CodebookWidth):
    """Product quantisation: the neurons are cut into runs of about the same length, one codebook for each."""

    selector: Literal["pq"] = "pq"

    @override
    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Entry by entry, the neurons of all runs side by side."""
        return {"codebook": (precision.dtype, (self.entries, width))}

    @override
    def fitter(self, precision: PrecisionSelector, width: int) -> Fitter:
        return _ProductFitter(self, precision, width)

    @override
    def encode(self, values: torch.Tensor, precision: PrecisionSelector, codec: Codec) -> dict[str, torch.Tensor]:
        import torch

        codebook = codec["codebook"].to(values.device)
        runs = _runs(values.shape[1], self.count(values.shape[1]))
        codes = _each(lambda run: nearest(values[:, run], codebook[:, run]), runs)
        return {"values": torch.stack(codes, dim=1)}

    @override
    def prepared(self, codec: Codec, width: int) -> Codec:
        """The entries of the longer and of the shorter runs, ``(n * runs * entries, neurons)`` each."""
        codebook = codec["codebook"].float()
        count = self.count(width)
        short, longer = divmod(width, count)
        parts = codebook.split([longer * (short + 1), width - longer * (short + 1)], dim=2)
        tables = {}
        for name, part, runs in (("longer", parts[0], longer), ("shorter", parts[1], count - longer)):
            if runs:
                tables[name] = part.unflatten(2, (runs, -1)).transpose(1, 2).flatten(0, 2).contiguous()
        return tables

    @override
    def decode(
        self, arrays: Mapping[str, torch.Tensor], precision: PrecisionSelector, codec: Codec, width: int
    ) -> torch.Tensor:
        import numpy as np
        import torch

        codes = arrays["values"].cpu().numpy()
        tokens, layers, count = codes.shape
        decoded, start, column = np.empty((tokens, layers, width), np.float32), 0, 0
        for name, runs in (("longer", width % count), ("shorter", count - width % count)):
            if name in codec:
                table = codec[name].numpy()
                rows = table.take(_places(codes[..., start : start + runs], self.entries), axis=0)
                stop = column + runs * table.shape[1]
                decoded[..., column:stop] = rows.reshape(tokens, layers, -1)
                start, column = start + runs, stop
        return torch.from_numpy(decoded).to(arrays["values"].device)


@WIDTH.register
class ResidualCodes(CodebookWidth):
    """Residual quantisation: each codebook is for what those before it have left of the whole hidden state."""

    selector: Literal["rvq"] = "rvq"

    @override
    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Codebook by codebook."""
        return {"codebook": (precision.dtype, (self.count(width), self.entries, width))}

    @override
    def fitter(self, precision: PrecisionSelector, width: int) -> Fitter:
        return _ResidualFitter(self, precision, width)

    @override
    def encode(self, values: torch.Tensor, precision: PrecisionSelector, codec: Codec) -> dict[str, torch.Tensor]:
        import torch

        codes, left = [], values
        for codebook in codec["codebook"].to(values.device).float():
            codes.append(nearest(left, codebook))
            left = left - codebook[codes[-1].long()]
        return {"values": torch.stack(codes, dim=1)}

    @override
    def prepared(self, codec: Codec, width: int) -> Codec:
        """All entries, ``(n * codebooks * entries, d_T)``."""
        return {"table": codec["codebook"].float().flatten(0, 2)}

    @override
    def decode(
        self, arrays: Mapping[str, torch.Tensor], precision: PrecisionSelector, codec: Codec, width: int
    ) -> torch.Tensor:
        import torch

        places = _places(arrays["values"].cpu().numpy(), self.entries)
        table = codec["table"].numpy()
        decoded = table.take(places[..., 0], axis=0)
        for i in range(1, places.shape[2]):
            decoded += table.take(places[..., i], axis=0)
        return torch.from_numpy(decoded).to(arrays["values"].device)


def _places(codes: np.ndarray, entries: int) -> np.ndarray:
    """Rows of a table that holds the entries of all codebooks ``(n, m)`` end to end, for codes ``(K, n, m)``.

    Codes are decoded by numpy: torch shares such short rows out among threads, which takes far longer than a copy.
    """
    import numpy as np

    layers, count = codes.shape[1:]
    places: np.ndarray = codes.astype(np.intp) + np.arange(layers * count).reshape(layers, count) * entries
    return places


def nearest(values: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The entry of ``codebook`` ``(E, d)`` that is nearest to each of ``values`` ``(M, d)``: ``(M,)`` uint8."""
    import numpy as np
    import torch

    centre = codebook.float().mean(0)  # distances are differences of squares: the smaller, the more exact
    entries, values = codebook.float() - centre, values - centre
    if values.shape[1] == 1:
        entries, values = codebook.float(), values + centre

    def distances(rows: torch.Tensor) -> torch.Tensor:
        if rows.shape[1] == 1:
            return (rows - entries.T).abs()  # exact
        return torch.addmm(squares, rows, entries.T, alpha=-2)

    squares = entries.square().sum(1)
    if values.device.type != "cpu":
        return distances(values).argmin(1).to(torch.uint8)
    codes = np.empty(len(values), np.uint8)
    for start in range(0, len(values), _ROWS):
        # numpy's argmin is five times as fast as torch's.
        codes[start : start + _ROWS] = distances(values[start : start + _ROWS]).numpy().argmin(1)
    return torch.from_numpy(codes)


def k_means(vectors: torch.Tensor, entries: int, seed: int) -> torch.Tensor:
    """The means of ``entries`` groups of near ``vectors`` ``(M, d)``, by Lloyd's algorithm, ``(entries, d)`` fp32.

    It begins at vectors drawn from ``seed``, and ends after a fixed number of rounds, or where nothing changes. The
    same vectors give the same bits in whatever thread it runs, as long as torch computes in one.
    """
    import numpy as np
    import torch

    first = np.random.default_rng(seed).choice(len(vectors), entries, replace=False)
    means, codes = vectors[torch.from_numpy(first)].clone(), None
    for _ in range(_ROUNDS):
        before, codes = codes, nearest(vectors, means)
        if before is not None and torch.equal(codes, before):
            break
        group = codes.long()
        sizes = torch.bincount(group, minlength=entries)
        sums = torch.zeros_like(means).index_add_(0, group, vectors)
        # An entry to which no vector is nearest stays where it is.
        means = torch.where((sizes > 0)[:, None], sums / sizes.clamp(min=1)[:, None], means)
    return means


def _each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``work`` of each of ``items``, as many at a time as torch has threads; each is computed in one thread.

    Adding up in one thread gives the same bits whatever their number.
    """
    import torch

    threads = torch.get_num_threads()
    with one_thread():
        if threads == 1:
            return list(map(work, items))

        def begin() -> None:
            torch.set_num_threads(1)  # New threads do not inherit it.

        with ThreadPoolExecutor(threads, initializer=begin) as pool:
            return list(pool.map(work, items))


def _runs(width: int, count: int) -> list[slice]:
    """``width`` neurons cut into ``count`` runs, the longer ones first."""
    import numpy as np

    short, longer = divmod(width, count)
    ends = np.cumsum([short + 1] * longer + [short] * (count - longer))
    return [slice(int(start), int(stop)) for start, stop in zip([0, *ends], ends, strict=False)]


class _Sample(Fitter):
    """Some of the kept tokens, drawn by a hash of example and position: in whatever order they come, the same ones."""

    def __init__(self, selector: CodebookWidth, precision: PrecisionSelector, width: int) -> None:
        import numpy as np

        self._selector, self._precision, self._width = selector, precision, width
        self._limit = VECTORS_PER_ENTRY * selector.entries
        self._keys = np.empty(0, np.uint64)
        self._vectors = np.empty((0, width), np.float32)

    def add(self, view: LayerView) -> None:
        """Keep the tokens of lowest hash."""
        import numpy as np

        tokens, before = view.tokens, len(self._keys)
        keys = mix(self._selector.seed, tokens.example_ids[tokens.example], tokens.position)
        keys = np.concatenate([self._keys, keys])
        lowest = np.sort(np.argsort(keys, kind="stable")[: self._limit])
        stay, join = lowest[lowest < before], lowest[lowest >= before] - before
        vectors = np.concatenate([self._vectors[stay], view.take(join).hidden.cpu().numpy()])
        by_key = np.argsort(keys[lowest], kind="stable")
        self._keys, self._vectors = keys[lowest][by_key], vectors[by_key]

    def _codebook(self, vectors: np.ndarray) -> torch.Tensor:
        """Entries for ``vectors`` ``(M, d)``, ``(entries, d)`` in the precision: themselves, where they are few."""
        import numpy as np
        import torch

        entries = self._selector.entries
        vectors = np.ascontiguousarray(vectors) + np.float32(0)  # -0.0 is 0.0
        # Vectors are as many as their hashes, or more; to sort the hashes is far quicker.
        if len(np.unique(mix(*vectors.view(np.uint32).T))) <= entries:
            different = np.unique(vectors, axis=0)
            if len(different) <= entries:
                missing = np.zeros((entries - len(different), vectors.shape[1]), np.float32)
                return torch.from_numpy(np.concatenate([different, missing])).to(self._precision.dtype)
        return k_means(torch.from_numpy(vectors), entries, self._selector.seed).to(self._precision.dtype)


class _ProductFitter(_Sample):
    def codec(self) -> Codec:
        """A codebook for each run."""
        import torch

        runs = _runs(self._width, self._selector.count(self._width))
        return {"codebook": torch.cat(_each(lambda run: self._codebook(self._vectors[:, run]), runs), dim=1)}


class _ResidualFitter(_Sample):
    def codec(self) -> Codec:
        """A codebook for what the ones before it leave, as they are stored."""
        import torch

        books, left = [], torch.from_numpy(self._vectors)
        with one_thread():
            for _ in range(self._selector.count(self._width)):
                books.append(self._codebook(left.numpy()))
                entries = books[-1].float()
                left = left - entries[nearest(left, entries).long()]
        return {"codebook": torch.stack(books)}
