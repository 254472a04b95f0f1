"""The fast path of training: cheap dropout, only the embedding rows in use, and no more of an encoder than is read."""

from hskd.fast.context import fast_training
from hskd.fast.encoder import LeanEncoder

__all__ = ["LeanEncoder", "fast_training"]
