"""Heads: what a prediction is, how it is learned, and how it is scored. No other package depends on these details.

Every module of this folder is imported, so a new head needs only one file.
"""

from hskd.heads.base import BEGINS, HEAD_FIELDS, IGNORED, Head, output_names
from hskd.heads.classes import soft_cross_entropy
from hskd.heads.embedding import SentenceEmbedding
from hskd.heads.metrics import METRICS
from hskd.heads.registry import HEADS, head_of
from hskd.heads.reranking import Reranking
from hskd.heads.sequence import MultiLabel, SequenceClassification, SequenceRegression, head_of_rows
from hskd.heads.token import TokenClassification
from hskd.registry import import_all

__all__ = [
    "BEGINS",
    "HEADS",
    "HEAD_FIELDS",
    "IGNORED",
    "METRICS",
    "Head",
    "MultiLabel",
    "Reranking",
    "SentenceEmbedding",
    "SequenceClassification",
    "SequenceRegression",
    "TokenClassification",
    "head_of",
    "head_of_rows",
    "output_names",
    "soft_cross_entropy",
]

import_all(__name__, __path__)
