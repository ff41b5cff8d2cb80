"""``splitgym dataset``: a router's decisions, to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from splitgym.cli.output import print_json


def dataset(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The folder of a router's decision log.")],
    out: Annotated[str, typer.Option(metavar="NAME", help="Of the Minari dataset, such as router/mine-v0.")],
    episode_decisions: Annotated[int, typer.Option(min=1, help="Most decisions in an episode.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Make a Minari dataset of logged decisions: observations, actions, rewards, propensities."""
    from splitgym.offline import make_dataset, read_decision_log

    made = make_dataset(read_decision_log(log), out, episode_decisions=episode_decisions)
    if as_json:
        print_json({"dataset": out, "episodes": int(made.total_episodes), "decisions": int(made.total_steps)})
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"dataset: {out}, {made.total_episodes} episodes, {made.total_steps} decisions")
        console.print(f"use:     minari.load_dataset({out!r})")
