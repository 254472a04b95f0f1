"""The fast path of training: cheap dropout, only used embedding rows, only the parts of an encoder that are read."""

from hskd.fast.context import fast_training
from hskd.fast.encoder import LeanEncoder

__all__ = ["LeanEncoder", "fast_training"]
