"""Selectors: one small file per dimension of hidden-state knowledge, one registry each."""

from hskd.selectors.base import Registry, Selector, Tokens
from hskd.selectors.depth import DEPTH, DepthSelector
from hskd.selectors.length import LENGTH, LengthSelector
from hskd.selectors.precision import PRECISION, PrecisionSelector
from hskd.selectors.width import WIDTH, WidthSelector

__all__ = [
    "DEPTH",
    "LENGTH",
    "PRECISION",
    "WIDTH",
    "DepthSelector",
    "LengthSelector",
    "PrecisionSelector",
    "Registry",
    "Selector",
    "Tokens",
    "WidthSelector",
]
