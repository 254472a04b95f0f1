"""Stores, teachers, students and trials at URLs: fetch them into a verified local copy, or publish them.

Any URL that ``fsspec`` opens will do. The public names are imported on first use.
"""

from typing import TYPE_CHECKING

from hskd.lazy import lazy_names

if TYPE_CHECKING:
    from hskd.remote.copies import contents_of, fetch, fetch_data, local_copy, publish, pull, verify
    from hskd.remote.place import is_url

__all__ = ["contents_of", "fetch", "fetch_data", "is_url", "local_copy", "publish", "pull", "verify"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "hskd.remote.copies": ("contents_of", "fetch", "fetch_data", "local_copy", "publish", "pull", "verify"),
        "hskd.remote.place": ("is_url",),
    },
)
