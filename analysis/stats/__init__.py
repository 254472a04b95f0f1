"""Statistics of a table of trials: points, intervals, tests and the verdicts that follow from them."""
