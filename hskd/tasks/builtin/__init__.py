"""The tasks that come with hskd. Every module of this folder is imported, so adding a file adds a task."""

from hskd.registry import import_all

import_all(__name__, __path__)
