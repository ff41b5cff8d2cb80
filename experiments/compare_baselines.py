"""All shipped heuristics on one card, over rates: who is best, by how much, and from which load on.

    python experiments/compare_baselines.py --card SplitwiseHH --rates 40 60 80 --seeds 10 --out results/baselines
    tensorboard --logdir results/baselines/tb

Everything here is public API; copy the file and put your own policy in (``--policies ./mine.py:Mine heuristics``).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from splitgym.errors import SplitgymError
from splitgym.learn import compare


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="Quickstart", help="a shipped card's name, or a path")
    parser.add_argument("--policies", nargs="+", default=["heuristics"], help="policies; 'heuristics' is all shipped")
    parser.add_argument("--rates", nargs="+", type=float, help="offered requests/s; the card's own if left out")
    parser.add_argument("--seeds", type=int, default=10, help="how many test seeds, the same for every policy")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("results/baselines"), help="folder for tables and charts")
    arguments = parser.parse_args()

    comparison = compare(
        arguments.card,
        arguments.policies,
        arguments.rates,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        out=arguments.out,
        logdir=arguments.out / "tb",
        progress=True,
    )
    comparison.print()

    # The verdicts are plain data: for instance, the rates at which Splitwise's scheduler is provably not the best.
    for verdict in comparison.verdicts:
        if verdict.policy == "splitwise" and verdict.regret.low > 0:
            print(f"{verdict.at}, {verdict.best_heuristic} beats splitwise by {verdict.regret.value:.3f} in slowdown")


if __name__ == "__main__":  # worker processes import this file
    try:
        main()
    except SplitgymError as error:
        sys.exit(str(error))
