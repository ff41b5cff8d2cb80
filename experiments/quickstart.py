"""The whole of it in one go: train an agent on Quickstart, compare it with every heuristic, say what was found.

    python experiments/quickstart.py
    tensorboard --logdir runs/quickstart

`make demo` runs this. The run goes to a new folder below ``--out``, so that it can be run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from splitgym.errors import SplitgymError
from splitgym.learn import compare, train


def main() -> None:
    """Train, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="Quickstart", help="a shipped card's name, or a card's path")
    parser.add_argument("--steps", type=int, default=131_072, help="decisions to learn from")
    parser.add_argument("--seed", type=int, default=0, help="of the network and the training scenarios")
    parser.add_argument("--seeds", type=int, default=20, help="test seeds that every policy plays")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the comparison")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for runs and charts")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    began_s = time.perf_counter()

    folder = _free(arguments.out)
    console.print(f"1/2  Training on {arguments.card}: the agent learns where to send each request.")
    run = train(arguments.card, "routing", steps=arguments.steps, seed=arguments.seed, out=folder / "agent")

    console.print(f"2/2  Comparing it with the heuristics on {arguments.seeds} scenarios it has never seen.")
    comparison = compare(
        arguments.card,
        [f"agent={run}", "heuristics"],
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        logdir=folder / "comparison",
        out=folder,
        progress=True,
    )
    comparison.print(console)

    minutes = (time.perf_counter() - began_s) / 60
    tensorboard = Path(sys.executable).with_name("tensorboard")
    console.print(f"\nDone in {minutes:.1f} minutes. To see how it learned, and the charts of the comparison:")
    console.print(f"  {_short(tensorboard)} --logdir {folder}", style="bold")
    console.print("and open http://localhost:6006. The trained policy plays anywhere a policy may:")
    console.print(
        f"  {_short(tensorboard.with_name('splitgym'))} compare SplitwiseHH --policy {run} --policy splitwise"
    )


def _free(folder: Path) -> Path:
    """``folder``, or ``folder-2``, ``folder-3``, … where a run lies in it already."""
    free, number = folder, 1
    while (free / "agent").exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _short(path: Path) -> Path:
    """The path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":  # worker processes import this file
    try:
        main()
    except SplitgymError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
