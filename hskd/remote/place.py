"""A folder at a URL: its files, read and written through ``fsspec``, with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hskd.errors import HskdError

_BLOCK = 2**22
_SMALL = 64 * 2**20
"""Bytes that a file may have which is read as a whole: no manifest or list of checksums has more."""


def is_url(place: str | Path) -> bool:
    """Whether ``place`` is a URL (``s3://bucket/store``, ``memory://store``, ...) and not a path."""
    return isinstance(place, str) and "://" in place


class Place:
    """The folder at ``url``; nothing is read yet.

    Raises:
        HskdError: the protocol is unknown, or needs a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        # A password in a URL must not reach messages, or the note beside a cached copy.
        from fsspec.core import url_to_fs

        self.url = re.sub(r"://[^/@:]*:[^/@]*@", "://", url).rstrip("/")
        try:
            self._files, root = url_to_fs(url)
        except ImportError as error:
            raise HskdError(f"{self.url}: needs a package that is not installed: {error} (with pip install).") from None
        except ValueError as error:
            raise HskdError(
                f"{self.url}: cannot be opened: {error}. Known are file, memory, s3, gs, abfs, hf, https and others."
            ) from None
        except Exception as error:  # each file system has errors of its own
            raise HskdError(f"{self.url}: cannot be opened: {_said(error)}") from error
        self._root = root.rstrip("/")
        self._files.invalidate_cache()  # what this process listed before may have changed since

    def __truediv__(self, name: str) -> str:
        """The URL of a file, for messages."""
        return f"{self.url}/{name}"

    @contextmanager
    def _reached(self, name: str, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, FileNotFoundError) and doing == "read":
                raise HskdError(f"{self / name}: no such file.") from None
            raise HskdError(
                f"{self / name}: cannot be {doing}: {_said(error)} Run the same command again to go on."
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where there is no such file.

        Raises:
            HskdError: it cannot be read, or is not small.
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
        """A file's bytes, block by block, and no more than ``most`` of them.

        Raises:
            HskdError: it is missing or cannot be read.
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
        """A file's bytes; None where there is no such file."""
        with self._reached(name, "read"):
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def stamp(self, name: str) -> tuple[int | None, str] | None:
        """A file's size, where that is known, and a token that changes with it; None where there is no such file."""
        with self._reached(name, "read"):
            try:
                info = self._files.info(self._path(name))
            except FileNotFoundError:
                return None
            return info.get("size"), str(self._files.checksum(self._path(name)))

    def listing(self) -> dict[str, tuple[int | None, str]]:
        """Every file below the folder: its size, where that is known, and a token that changes with the file."""
        with self._reached("", "listed"):
            infos = self._files.find(self._root, detail=True)
            start = len(self._root) + 1
            return {path[start:]: (info.get("size"), str(self._files.checksum(path))) for path, info in infos.items()}

    def is_empty(self) -> bool:
        """Whether nothing is there."""
        with self._reached("", "listed"):
            try:
                return not self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return True

    def put(self, path: Path, name: str) -> None:
        """Upload a file.

        Raises:
            HskdError: it cannot be written, or arrives with another size.
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
            HskdError: it cannot be written.
        """
        with self._reached(name, "written"):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(name), content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.size(name) is not None:
            with self._reached(name, "removed"):
                self._files.rm_file(self._path(name))


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no details'}{'' if text.endswith('.') else '.'}"
