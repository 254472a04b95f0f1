"""One module per figure: from a table to a picture in the style of ``analysis.style``."""
