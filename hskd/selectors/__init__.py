"""Selectors: one module and one registry per dimension of hidden-state knowledge.

This package imports every module in its folder, so a new selector may also be a file of its own.
"""

from hskd.registry import import_all
from hskd.selectors.base import LayerView, Registry, Selector, Tokens, mix
from hskd.selectors.depth import DEPTH, DepthSelector
from hskd.selectors.examples import EXAMPLES, ExampleScores, ExamplesSelector
from hskd.selectors.length import LENGTH, LengthSelector
from hskd.selectors.precision import PRECISION, PrecisionSelector
from hskd.selectors.width import WIDTH, WidthSelector

__all__ = [
    "DEPTH",
    "EXAMPLES",
    "LENGTH",
    "PRECISION",
    "WIDTH",
    "DepthSelector",
    "ExampleScores",
    "ExamplesSelector",
    "LayerView",
    "LengthSelector",
    "PrecisionSelector",
    "Registry",
    "Selector",
    "Tokens",
    "WidthSelector",
    "mix",
]

import_all(__name__, __path__)
