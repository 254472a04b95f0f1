"""Trials: the config of a trial, the artifacts it needs, its execution and its result."""
