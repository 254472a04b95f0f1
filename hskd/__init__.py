"""hskd: how little of a teacher's hidden-state knowledge does a student need?

Importing the package registers the ROSITA student with the Auto classes of ``transformers``.
"""

from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.spec import HSKSpec
from hskd.store import Store
from hskd.students import register_rosita

register_rosita()

__all__ = ["CorruptionError", "HSKSpec", "HskdError", "MismatchError", "Store"]
