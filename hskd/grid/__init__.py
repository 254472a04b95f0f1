"""Grids: planned sets of trials that survive kills and run anywhere."""
