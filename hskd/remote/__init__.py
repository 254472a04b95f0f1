"""Stores, teachers, students and trials at any URL that ``fsspec`` opens, used from a verified local copy.

The names are imported when they are first used.
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
