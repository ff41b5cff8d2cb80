"""The program: its commands, and how a user's mistake ends it.

Modules with weight (numba, torch) are imported inside the commands, so that ``--help`` comes at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import typer

from splitgym import __version__
from splitgym.cli import calibrate, dataset, emulate, export, learning, listing, serve, simulate
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
app.command()(export.export)
app.command()(serve.serve)
app.command()(emulate.emulate)
app.command()(dataset.dataset)
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half written is taken back
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except SplitgymError as error:
        _fail(str(error))
    except Exception as error:
        # Typer's own errors; where their class lives has changed from version to version
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(2)  # the help is printed already
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else app.info.name
        _fail(f"{' '.join(message().split())} (see {command} --help)")
    sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
