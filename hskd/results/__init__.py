"""Results of grids: the files of a results folder, and the table with one row for each trial.

``explore`` needs ``hskd.analysis``, which is imported when it is first used.
"""

from typing import TYPE_CHECKING

from hskd.lazy import lazy_names
from hskd.results.columns import COLUMNS, NUMBERS, row, table_of, write_csv
from hskd.results.folder import GRID_FILE, LABELS_FILE, PREDICTIONS_FILE, TABLE_FILE, TRIALS, ResultsFolder, load
from hskd.results.pack import Packed, pack, unpack

if TYPE_CHECKING:
    from hskd.analysis.explore import explore

__all__ = [
    "COLUMNS",
    "GRID_FILE",
    "LABELS_FILE",
    "NUMBERS",
    "PREDICTIONS_FILE",
    "TABLE_FILE",
    "TRIALS",
    "Packed",
    "ResultsFolder",
    "explore",
    "load",
    "pack",
    "row",
    "table_of",
    "unpack",
    "write_csv",
]

__getattr__, __dir__ = lazy_names(__name__, {"hskd.analysis.explore": ("explore",)})
