"""``python -m splitgym.cli``."""

from splitgym.cli.app import main

main()
