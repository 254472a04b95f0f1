"""From result tables to curves, statistics and figures; imports ``hskd``, never the reverse."""
