"""Folders that a command reads or writes, which may be URLs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hskd import processes
from hskd.cli.progress import display


def readable(flag: str, given: str, work: Path, command: str | None = None) -> Path:
    """Return the local folder for ``given``: a folder itself, a verified copy of a URL, or a package's model.

    Raises:
        HskdError: there is no such folder; the message names ``command``, if given, as the one that makes it.
    """
    from hskd.cli.setting import require_folder
    from hskd.remote import fetch, is_url
    from hskd.teachers.settings import is_offline

    if is_offline(given):
        from hskd.teachers.loading import resolve_model

        return Path(resolve_model(given))
    if is_url(given):

        def copy() -> Path:
            with display() as progress:
                return fetch(given, work, progress)

        return processes.by_main(copy)
    if command is not None:
        require_folder(flag, Path(given), command)
    return Path(given)


@dataclass(frozen=True)
class Output:
    """The destination of a command's artifact.

    Attributes:
        given: the user's folder or URL.
        folder: folder to build in: the user's, or one in the cache that is published when finished.
    """

    given: str
    folder: Path

    @classmethod
    def of(cls, given: str, work: Path) -> Output:
        """Find the folder. An existing artifact at a URL is fetched, to be reused or refused like a local one.

        Raises:
            HskdError: the URL cannot be reached.
        """
        return processes.by_main(lambda: cls._found(given, work))

    @classmethod
    def _found(cls, given: str, work: Path) -> Output:
        from hskd.artifacts import ArtifactFolders
        from hskd.remote.contents import finished_contents
        from hskd.remote.copies import CACHE, pull
        from hskd.remote.place import Place, is_url

        if not is_url(given):
            return cls(given, Path(given))
        place = Place(given)
        folder = ArtifactFolders(work).folder(CACHE, {"url": place.url, "content": "made here"})
        # Access the URL before anything runs, because an unusable protocol must not be discovered at the end.
        if finished_contents(place) is not None and not folder.exists():
            with display() as progress:
                pull(given, folder, progress)
        return cls(given, folder)

    def publish(self) -> None:
        """Upload the artifact if the destination is a URL.

        Raises:
            HskdError: see :func:`hskd.remote.publish`.
        """
        from hskd.remote import is_url

        if is_url(self.given):
            processes.by_main(self._publish)

    def _publish(self) -> None:
        from hskd.remote import publish

        with display() as progress:
            publish(self.folder, self.given, progress)
