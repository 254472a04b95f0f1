"""Students: ROSITA models pruned from a fine-tuned BERT, and loading students of any type.

Importing this package registers the ``rosita`` model type with transformers' Auto classes.
"""

from hskd.students.importance import Importance, require_bert_shaped, taylor_importance
from hskd.students.loading import load_student
from hskd.students.prune import factorise, prune_rosita
from hskd.students.rosita import (
    FactorisedEmbedding,
    RositaConfig,
    RositaForSequenceClassification,
    RositaModel,
    register_rosita,
)

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
    "require_bert_shaped",
    "taylor_importance",
]

register_rosita()
