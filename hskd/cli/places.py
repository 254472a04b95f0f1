"""Folders that a command reads or fills, which may be URLs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hskd import processes
from hskd.cli.progress import display


def readable(flag: str, given: str, work: Path, command: str | None = None) -> Path:
    """The folder on this machine that ``given`` means: itself, a verified copy of a URL, or that of a package.

    Raises:
        HskdError: nothing is there; ``command``, if given, is named as what makes one.
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
    """Where a command's artifact goes.

    Attributes:
        given: what the user named: a folder, or a URL.
        folder: where it is built: that folder, or one in the cache, from which it is published when it is finished.
    """

    given: str
    folder: Path

    @classmethod
    def of(cls, given: str, work: Path) -> Output:
        """Find the folder; what a URL holds already is fetched, and then reused or refused as a local folder would be.

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
        # Asked before anything runs: a protocol that cannot be used must not be found out at the end.
        if finished_contents(place) is not None and not folder.exists():
            with display() as progress:
                pull(given, folder, progress)
        return cls(given, folder)

    def publish(self) -> None:
        """Upload what was built, if it goes to a URL.

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
