"""Stores, teachers, students and trials at any URL that ``fsspec`` opens, used from a verified local copy."""

from hskd.remote.copies import contents_of, fetch, local_copy, publish, pull, verify
from hskd.remote.place import is_url

__all__ = ["contents_of", "fetch", "is_url", "local_copy", "publish", "pull", "verify"]
