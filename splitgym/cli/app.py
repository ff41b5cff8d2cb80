"""The program: its commands, and how a user's mistake ends it.

Modules with weight (numba, torch) are imported inside the commands, so that ``--help`` comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from splitgym import __version__
from splitgym.cli import calibrate, learning, listing, simulate
from splitgym.errors import SplitgymError

app = typer.Typer(
    name="splitgym",
    help="Simulate, train and compare schedulers of phase-split LLM inference clusters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate.simulate)
app.command()(learning.train)
app.command()(learning.compare)
app.add_typer(listing.app, name="list")
app.add_typer(calibrate.app, name="calibrate")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"splitgym {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A user's mistake is a line on stderr that begins ``error:``, and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments))
    except SplitgymError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
