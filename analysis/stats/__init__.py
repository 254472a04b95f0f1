"""Statistics of a table of trials: points, intervals, tests and verdicts."""
