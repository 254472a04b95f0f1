"""Students: ROSITA models pruned from a fine-tuned encoder, and a loader for students of any type.

Names are imported on first use.
"""

from typing import TYPE_CHECKING

from hskd.lazy import lazy_names

if TYPE_CHECKING:
    from hskd.students.loading import load_student
    from hskd.students.rosita.importance import Importance, require_prunable, taylor_importance
    from hskd.students.rosita.model import (
        FactorisedEmbedding,
        RositaConfig,
        RositaForSequenceClassification,
        RositaModel,
        register_rosita,
    )
    from hskd.students.rosita.prune import factorise, prune_rosita

__all__ = [
    "FactorisedEmbedding",
    "Importance",
    "RositaConfig",
    "RositaForSequenceClassification",
    "RositaModel",
    "factorise",
    "load_student",
    "prune_rosita",
    "register_rosita",
    "require_prunable",
    "taylor_importance",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "hskd.students.loading": ("load_student",),
        "hskd.students.rosita.importance": ("Importance", "require_prunable", "taylor_importance"),
        "hskd.students.rosita.model": (
            "FactorisedEmbedding",
            "RositaConfig",
            "RositaForSequenceClassification",
            "RositaModel",
            "register_rosita",
        ),
        "hskd.students.rosita.prune": ("factorise", "prune_rosita"),
    },
)
