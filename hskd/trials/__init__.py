"""A trial: its config, the artifacts it needs, its execution and its result."""
