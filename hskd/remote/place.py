"""A folder at a URL, whose files are read and written through ``fsspec``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hskd.errors import HskdError

_BLOCK = 2**22
_SMALL = 64 * 2**20
"""Maximum size in bytes of a file that is read as a whole. Manifests and lists of checksums are smaller."""


def is_url(place: str | Path) -> bool:
    """Return whether ``place`` is a URL (``s3://bucket/store``, ``memory://store``, ...) and not a path."""
    return isinstance(place, str) and "://" in place


class Place:
    """The folder at ``url``. Creating the object reads nothing.

    Raises:
        HskdError: the protocol is unknown, or needs a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        # A password in a URL must not reach messages, or the note beside a cached copy.
        self.url = re.sub(r"://[^/@:]*:[^/@]*@", "://", url).rstrip("/")
        try:
            self._files, root = url_to_fs(url)
        except ImportError as error:
            raise HskdError(f"{self.url}: needs a package that is not installed: {error} (with pip install).") from None
        except ValueError as error:
            raise HskdError(
                f"{self.url}: cannot be opened: {error}. Known are file, memory, s3, gs, abfs, hf, https and others."
            ) from None
        except Exception as error:  # Each file system raises its own errors.
            raise HskdError(f"{self.url}: cannot be opened: {_said(error)}") from error
        self._root = root.rstrip("/")
        self._files.invalidate_cache()  # Listings that this process has cached may be outdated.

    def __truediv__(self, name: str) -> str:
        """Return the URL of a file, for messages."""
        return f"{self.url}/{name}"

    @contextmanager
    def _reached(self, name: str, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Each file system raises its own errors.
            if isinstance(error, FileNotFoundError) and doing == "read":
                raise HskdError(f"{self / name}: no such file.") from None
            raise HskdError(
                f"{self / name}: cannot be {doing}: {_said(error)} Run the same command again to resume."
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file; None if there is no such file.

        Raises:
            HskdError: the file cannot be read, or is larger than 64 MiB.
        """
        content = bytearray()
        with self._reached(name, "read"):
            try:
                for block in self._blocks(name, _SMALL + 1):
                    content += block
            except FileNotFoundError:
                return None
        if len(content) > _SMALL:
            raise HskdError(
                f"{self / name}: is larger than any file of that name that hskd writes; nothing was fetched."
            )
        return bytes(content)

    def blocks(self, name: str, most: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file in blocks, at most ``most`` bytes in total.

        Raises:
            HskdError: the file is missing or cannot be read.
        """
        with self._reached(name, "read"):
            yield from self._blocks(name, most)

    def _blocks(self, name: str, most: int | None) -> Iterator[bytes]:
        left = most
        with self._files.open(self._path(name), "rb") as file:
            while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
                yield block
                if left is not None:
                    left -= len(block)

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if there is no such file."""
        with self._reached(name, "read"):
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def stamp(self, name: str) -> tuple[int | None, str] | None:
        """Return a file's size (None if unknown) and a token that changes with it; None if there is no such file."""
        with self._reached(name, "read"):
            try:
                info = self._files.info(self._path(name))
            except FileNotFoundError:
                return None
            return info.get("size"), str(self._files.checksum(self._path(name)))

    def listing(self) -> dict[str, tuple[int | None, str]]:
        """Return every file below the folder: name -> (size in bytes, token that changes with the file).

        An unknown size is None.
        """
        with self._reached("", "listed"):
            infos = self._files.find(self._root, detail=True)
            start = len(self._root) + 1
            return {path[start:]: (info.get("size"), str(self._files.checksum(path))) for path, info in infos.items()}

    def is_empty(self) -> bool:
        """Return whether the folder is empty or missing."""
        with self._reached("", "listed"):
            try:
                return not self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return True

    def put(self, path: Path, name: str) -> None:
        """Upload the file at ``path`` under the name ``name``.

        Raises:
            HskdError: the file cannot be written, or its uploaded size is wrong.
        """
        with self._reached(name, "written"):
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path), self._path(name))
        if self.size(name) != path.stat().st_size:
            raise HskdError(
                f"{self / name}: arrived with {self.size(name)} bytes of {path.stat().st_size}; push again."
            )

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            HskdError: the file cannot be written.
        """
        with self._reached(name, "written"):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(name), content)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        if self.size(name) is not None:
            with self._reached(name, "removed"):
                self._files.rm_file(self._path(name))


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no details'}{'' if text.endswith('.') else '.'}"
