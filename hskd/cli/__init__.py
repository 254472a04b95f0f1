"""The command line: one file per command, combined in :mod:`hskd.cli.app`."""
