"""Analysis of result tables: curves, statistics, figures and reports.

This package imports the rest of ``hskd``, never the reverse. Notebooks import names from here, such as
``from hskd.analysis import studies, points``. A module is loaded when the first of its names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hskd.analysis.report.page import write_report
    from hskd.analysis.report.recommendation import recommend
    from hskd.analysis.stats.curves import contrast, marginal_utility, points
    from hskd.analysis.stats.equal_bytes import equal_bytes
    from hskd.analysis.stats.examples import Answers
    from hskd.analysis.stats.joint import next_byte, pareto, surface
    from hskd.analysis.stats.pairing import pair
    from hskd.analysis.stats.strategies import compare_strategies
    from hskd.analysis.stats.sufficiency import minimum_sufficient
    from hskd.analysis.stats.timing import Timings, speedups
    from hskd.analysis.table import Study, only_study, read_trials, studies

_MODULES = {
    "report.page": ("write_report",),
    "report.recommendation": ("recommend",),
    "stats.curves": ("contrast", "marginal_utility", "points"),
    "stats.equal_bytes": ("equal_bytes",),
    "stats.examples": ("Answers",),
    "stats.joint": ("next_byte", "pareto", "surface"),
    "stats.pairing": ("pair",),
    "stats.strategies": ("compare_strategies",),
    "stats.sufficiency": ("minimum_sufficient",),
    "stats.timing": ("Timings", "speedups"),
    "table": ("Study", "only_study", "read_trials", "studies"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Answers",
    "Study",
    "Timings",
    "compare_strategies",
    "contrast",
    "equal_bytes",
    "marginal_utility",
    "minimum_sufficient",
    "next_byte",
    "only_study",
    "pair",
    "pareto",
    "points",
    "read_trials",
    "recommend",
    "speedups",
    "studies",
    "surface",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
