"""Grids: planned sets of trials that resume after interruptions and run on one machine or a cluster."""
