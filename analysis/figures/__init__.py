"""Figures, one module each: they draw a table in the style of :mod:`hskd.analysis.figures.style`."""
