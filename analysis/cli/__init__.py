"""Commands that the analysis adds to ``hskd``, one module each."""
