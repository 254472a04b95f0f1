"""hskd: how little of a teacher's hidden-state knowledge does a student need?

Importing the package is cheap, because each public name is imported on first use. If ``transformers`` is imported too,
before or after, its Auto classes and ``pipeline`` can load the ROSITA student.
"""

from typing import TYPE_CHECKING

from hskd.autoclasses import register_with_transformers
from hskd.lazy import lazy_names

if TYPE_CHECKING:
    from hskd.analysis.minimum import FindResult, find
    from hskd.distill.losses import hsk_loss, prediction_loss
    from hskd.distill.source import KnowledgeSource, OnlineSource, StoreSource
    from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
    from hskd.errors import CorruptionError, HskdError, MismatchError
    from hskd.knowledge import KeptHSK, select_hsk
    from hskd.spec import HSKSpec, Shape
    from hskd.store.amount import HSKAmount, measure
    from hskd.store.derive import derive
    from hskd.store.examples import store_examples
    from hskd.store.extract import Superset, extract
    from hskd.store.reader import Store
    from hskd.students import load_student, prune_rosita, taylor_importance
    from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
    from hskd.teachers.loading import Teacher
    from hskd.training import training_arguments
    from hskd.trials.api import run_trial

__all__ = [
    "CorruptionError",
    "FindResult",
    "HSKAmount",
    "HSKModule",
    "HSKSpec",
    "HSKTrainer",
    "HskdError",
    "KeptHSK",
    "KnowledgeSource",
    "MismatchError",
    "OnlineSource",
    "PredictionTrainer",
    "Shape",
    "Store",
    "StoreSource",
    "Superset",
    "Task",
    "Teacher",
    "TokenizedSplit",
    "derive",
    "extract",
    "find",
    "hsk_loss",
    "load_student",
    "load_task",
    "measure",
    "prediction_loss",
    "prune_rosita",
    "run_trial",
    "select_hsk",
    "store_examples",
    "taylor_importance",
    "tokenize",
    "training_arguments",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "hskd.analysis.minimum": ("FindResult", "find"),
        "hskd.distill.losses": ("hsk_loss", "prediction_loss"),
        "hskd.distill.source": ("KnowledgeSource", "OnlineSource", "StoreSource"),
        "hskd.distill.trainer": ("HSKModule", "HSKTrainer", "PredictionTrainer"),
        "hskd.errors": ("CorruptionError", "HskdError", "MismatchError"),
        "hskd.knowledge": ("KeptHSK", "select_hsk"),
        "hskd.spec": ("HSKSpec", "Shape"),
        "hskd.store.amount": ("HSKAmount", "measure"),
        "hskd.store.derive": ("derive",),
        "hskd.store.examples": ("store_examples",),
        "hskd.store.extract": ("Superset", "extract"),
        "hskd.store.reader": ("Store",),
        "hskd.students": ("load_student", "prune_rosita", "taylor_importance"),
        "hskd.tasks": ("Task", "TokenizedSplit", "load_task", "tokenize"),
        "hskd.teachers.loading": ("Teacher",),
        "hskd.training": ("training_arguments",),
        "hskd.trials.api": ("run_trial",),
    },
)

register_with_transformers()
