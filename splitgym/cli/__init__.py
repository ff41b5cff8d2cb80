"""The command line: ``splitgym simulate | train | compare | list | calibrate``."""

from splitgym.cli.app import main

__all__ = ["main"]
