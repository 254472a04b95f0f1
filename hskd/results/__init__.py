"""Results of grids: the files of a results folder, and the table with one row for each trial."""

from hskd.results.columns import COLUMNS, NUMBERS, row, table_of, write_csv
from hskd.results.folder import GRID_FILE, LABELS_FILE, PREDICTIONS_FILE, TABLE_FILE, TRIALS, ResultsFolder, load
from hskd.results.pack import Packed, pack, unpack

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
    "load",
    "pack",
    "row",
    "table_of",
    "unpack",
    "write_csv",
]
