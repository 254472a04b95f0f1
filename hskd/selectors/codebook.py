"""Width selectors that store codes: a kept token takes one byte per codebook, and decodes to all its neurons."""

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
"""Training tokens per codebook entry. If there are more tokens, a sample of this size is drawn."""
_ROUNDS = 10
"""Rounds of k-means. On hidden states of all-MiniLM-L6-v2, 25 rounds reduce the error by 1 % and double the time."""
_ROWS = 1024
"""Vectors whose distances are computed at a time. With 256 entries, the distances fit in a core's cache."""

T = TypeVar("T")
R = TypeVar("R")


class CodebookWidth(WidthSelector):
    """Base class of the selectors that keep one byte for each of ``max(1, floor(w * d_T))`` codebooks.

    The codebooks of each layer are learnt by k-means from the kept tokens of the training examples, and stored once.
    The spec's precision applies to the codebooks. A code always takes one byte.
    """

    entries: Annotated[int, Field(ge=2, le=256)] = 256
    """Number of entries of a codebook."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sample of training tokens, and of the initial means of k-means."""

    @override
    def check(self, precision: PrecisionSelector) -> None:
        if set(precision.layout(1)) != {"values"} or not precision.dtype.is_floating_point:
            raise ValueError(
                f"width={self.selector} keeps codes of one byte, so precision applies to the codebooks: expected fp16, "
                f"bf16 or fp32 (got {precision.selector})"
            )

    @override
    def fixed(self, width: int) -> np.ndarray:
        """Return all neurons, because codes are computed from all of them."""
        import numpy as np

        return np.arange(width)

    @override
    def layout(self, precision: PrecisionSelector, width: int) -> Layout:
        import torch

        return {"values": (torch.uint8, self.count(width))}


@WIDTH.register
class ProductCodes(CodebookWidth):
    """Product quantisation: the neurons are cut into runs of about equal length, with one codebook per run."""

    selector: Literal["pq"] = "pq"

    @override
    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the layout of the codebooks: row ``e`` concatenates entry ``e`` of all runs."""
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
        """Return the entries of the longer and of the shorter runs, ``(n * runs * entries, neurons)`` each."""
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
        import torch

        codes, parts, start = arrays["values"], [], 0
        count = codes.shape[2]
        for name, runs in (("longer", width % count), ("shorter", count - width % count)):
            if name in codec:
                parts.append(_entries(codec[name], _places(codes[..., start : start + runs], self.entries)).flatten(2))
                start += runs
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@WIDTH.register
class ResidualCodes(CodebookWidth):
    """Residual quantisation: each codebook encodes the residual of the hidden state after the codebooks before it."""

    selector: Literal["rvq"] = "rvq"

    @override
    def codec_layout(self, precision: PrecisionSelector, width: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the layout of the codebooks, which are stacked along the first dimension."""
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
        """Return all entries, ``(n * codebooks * entries, d_T)``."""
        return {"table": codec["codebook"].float().flatten(0, 2)}

    @override
    def decode(
        self, arrays: Mapping[str, torch.Tensor], precision: PrecisionSelector, codec: Codec, width: int
    ) -> torch.Tensor:
        places = _places(arrays["values"], self.entries)
        decoded = _entries(codec["table"], places[..., 0])
        for i in range(1, places.shape[2]):
            decoded += _entries(codec["table"], places[..., i])
        return decoded


def _places(codes: torch.Tensor, entries: int) -> torch.Tensor:
    """Return the rows of codes ``(K, n, m)`` in a table that concatenates the entries of all codebooks ``(n, m)``."""
    import torch

    layers, count = codes.shape[1:]
    first = torch.arange(layers * count, device=codes.device).unflatten(0, (layers, count)) * entries
    return codes.long() + first


def _entries(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the rows of ``table`` ``(E, d)`` at ``places`` ``(...)``, on their device, ``(..., d)``."""
    import torch

    if places.device.type != "cpu":
        return table.to(places.device)[places]
    # For such short rows, torch spends far more time on its threads than on the copy.
    return torch.from_numpy(table.numpy().take(places.numpy(), axis=0))


def nearest(values: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the index in ``codebook`` ``(E, d)`` nearest to each of ``values`` ``(M, d)``, as ``(M,)`` uint8."""
    import numpy as np
    import torch

    centre = codebook.float().mean(0)  # Distances are differences of squares, which are more exact for small numbers.
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
    """Return the means of ``entries`` clusters of ``vectors`` ``(M, d)``, ``(entries, d)`` fp32, by Lloyd's algorithm.

    The initial means are vectors drawn from ``seed``. The algorithm ends after a fixed number of rounds, or when no
    assignment changes. The same vectors give the same bits if torch computes in one thread.
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
        # An empty cluster keeps its mean.
        means = torch.where((sizes > 0)[:, None], sums / sizes.clamp(min=1)[:, None], means)
    return means


def _each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``work(item)`` for each of ``items``, in parallel, with a single torch thread per item.

    There are as many parallel workers as torch has threads. Because each item is computed in one thread, the bits do
    not depend on the number of threads.
    """
    import torch

    threads = torch.get_num_threads()
    with one_thread():
        if threads == 1:
            return list(map(work, items))

        def begin() -> None:
            torch.set_num_threads(1)  # New threads do not inherit this setting.

        with ThreadPoolExecutor(threads, initializer=begin) as pool:
            return list(pool.map(work, items))


def _runs(width: int, count: int) -> list[slice]:
    """Return ``count`` slices that partition ``width`` neurons, the longer slices first."""
    import numpy as np

    short, longer = divmod(width, count)
    ends = np.cumsum([short + 1] * longer + [short] * (count - longer))
    return [slice(int(start), int(stop)) for start, stop in zip([0, *ends], ends, strict=False)]


class _Sample(Fitter):
    """A random sample of the kept tokens, drawn by a hash of example id and position, regardless of their order."""

    def __init__(self, selector: CodebookWidth, precision: PrecisionSelector, width: int) -> None:
        import numpy as np

        self._selector, self._precision, self._width = selector, precision, width
        self._limit = VECTORS_PER_ENTRY * selector.entries
        self._keys = np.empty(0, np.uint64)
        self._vectors = np.empty((0, width), np.float32)

    def add(self, view: LayerView) -> None:
        """Add tokens, and keep those of lowest hash."""
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
        """Return a codebook for ``vectors`` ``(M, d)``, ``(entries, d)`` in the spec's precision.

        If there are no more distinct vectors than entries, the entries are these vectors.
        """
        import numpy as np
        import torch

        entries = self._selector.entries
        vectors = np.ascontiguousarray(vectors) + np.float32(0)  # -0.0 is 0.0
        # The hashes give a lower bound of the number of distinct vectors, and are far faster to sort.
        if len(np.unique(mix(*vectors.view(np.uint32).T))) <= entries:
            different = np.unique(vectors, axis=0)
            if len(different) <= entries:
                missing = np.zeros((entries - len(different), vectors.shape[1]), np.float32)
                return torch.from_numpy(np.concatenate([different, missing])).to(self._precision.dtype)
        return k_means(torch.from_numpy(vectors), entries, self._selector.seed).to(self._precision.dtype)


class _ProductFitter(_Sample):
    def codec(self) -> Codec:
        """Return the codebooks of all runs."""
        import torch

        runs = _runs(self._width, self._selector.count(self._width))
        return {"codebook": torch.cat(_each(lambda run: self._codebook(self._vectors[:, run]), runs), dim=1)}


class _ResidualFitter(_Sample):
    def codec(self) -> Codec:
        """Return the codebooks. Each learns from the residuals of those before it, after rounding for storage."""
        import torch

        books, left = [], torch.from_numpy(self._vectors)
        with one_thread():
            for _ in range(self._selector.count(self._width)):
                books.append(self._codebook(left.numpy()))
                entries = books[-1].float()
                left = left - entries[nearest(left, entries).long()]
        return {"codebook": torch.stack(books)}
