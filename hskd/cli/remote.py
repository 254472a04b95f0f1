"""``hskd push`` and ``hskd pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.cli.progress import display
from hskd.errors import HskdError


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a store, teacher, student or finished trial.")],
    url: Annotated[str, typer.Argument(help="Destination: any URL that fsspec opens, such as s3://bucket/store.")],
) -> None:
    """Copy a store, teacher, student or trial to a URL, with checksums. Run again to resume."""
    from hskd import remote

    _require_url(url)
    with display() as progress:
        remote.publish(folder, url, progress)
    print(f"{folder}: at {url}")


def pull(
    url: Annotated[str, typer.Argument(help="Source: any URL that fsspec opens, such as s3://bucket/store.")],
    folder: Annotated[Path, typer.Argument(help="Destination folder.")],
) -> None:
    """Copy a store, teacher, student or trial from a URL into a folder, and verify it. Run again to resume."""
    from hskd import remote

    _require_url(url)
    with display() as progress:
        remote.pull(url, folder, progress)
    print(f"{url}: in {folder}")


def _require_url(url: str) -> None:
    from hskd.remote import is_url

    if not is_url(url):
        raise HskdError(f"{url}: expected a URL, such as s3://bucket/store or file:///mnt/share/store.")
