"""hskd: how little of a teacher's hidden-state knowledge does a student need?

Importing the package registers the ROSITA student with the Auto classes of ``transformers``.
"""

from hskd.amount import HSKAmount, measure
from hskd.distill.losses import hsk_loss, prediction_loss
from hskd.distill.source import KnowledgeSource, OnlineSource, StoreSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.knowledge import KeptHSK, select_hsk
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.store.examples import store_examples
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.students import load_student, prune_rosita, taylor_importance
from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
from hskd.teachers.loading import Teacher
from hskd.training import training_arguments

__all__ = [
    "CorruptionError",
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
    "hsk_loss",
    "load_student",
    "load_task",
    "measure",
    "prediction_loss",
    "prune_rosita",
    "select_hsk",
    "store_examples",
    "taylor_importance",
    "tokenize",
    "training_arguments",
]
