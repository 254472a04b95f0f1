"""The report page, its tables and its words, and what was run."""
