"""``python -m hskd`` is ``hskd``."""

from hskd.cli.app import main

main()
