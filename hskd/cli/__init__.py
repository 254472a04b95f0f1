"""The command line: one file per command, brought together in :mod:`hskd.cli.app`."""
