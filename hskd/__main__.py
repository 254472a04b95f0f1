"""Entry point of ``python -m hskd``, which is the same as the command ``hskd``."""

from hskd.cli.app import main

main()
