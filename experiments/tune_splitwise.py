"""Tune the two thresholds of splitwise-tuned on training seeds, and write the policy card.

A grid over both is run on each card; what counts is the slowdown charged over the whole run, against that of the
published scheduler on the same seeds, averaged over cards (geometrically, so that no card's unit wins). A few minutes:

    python experiments/tune_splitwise.py --cards Quickstart SplitwiseHH --seeds 3
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from splitgym.cards import load_card
from splitgym.policies import BUILTINS, CompiledPolicy, Policy
from splitgym.sim.cluster import Scenario
from splitgym.sim.run import run


@dataclass(frozen=True)
class Args:
    """What can be chosen on the command line."""

    cards: Sequence[str] = ("Quickstart", "SplitwiseHH", "SplitwiseHA")
    seeds: int = 3  # training seeds of each card
    horizon_s: float = 60.0  # of each run
    prompt_threshold_tokens: Sequence[float] = (512, 1024, 2048, 4096, 8192)
    tbt_slowdown: Sequence[float] = (1.1, 1.25, 1.4, 1.6, 1.8, 2.0)
    out: Path = Path("policies/splitwise-tuned.yaml")


def main(args: Args) -> None:
    """Search, print what was found, write the card."""
    scenarios = {
        name: [load_card(name).scenario(seed, "train", horizon_s=args.horizon_s) for seed in range(args.seeds)]
        for name in args.cards
    }
    published = CompiledPolicy(BUILTINS["splitwise"])
    reference = {name: [charged(scenario, published) for scenario in runs] for name, runs in scenarios.items()}

    best_ratio, best_params = np.inf, {"prompt_threshold_tokens": 0.0, "tbt_slowdown": 0.0}
    for prompt_threshold_tokens, tbt_slowdown in itertools.product(args.prompt_threshold_tokens, args.tbt_slowdown):
        params = {"prompt_threshold_tokens": prompt_threshold_tokens, "tbt_slowdown": tbt_slowdown}
        policy = CompiledPolicy(BUILTINS["splitwise-tuned"], params)
        ratios = {
            name: float(np.mean([charged(scenario, policy) for scenario in runs]) / np.mean(reference[name]))
            for name, runs in scenarios.items()
        }
        ratio = float(np.exp(np.mean(np.log(list(ratios.values())))))
        print(
            f"{params}: {ratio:.4f} of the published scheduler's slowdown", {k: round(v, 4) for k, v in ratios.items()}
        )
        if ratio < best_ratio:
            best_ratio, best_params = ratio, params

    where = f"{args.seeds} training seeds of {', '.join(args.cards)}"
    card = {
        "description": f"Splitwise's scheduler that heeds predicted TBT, tuned on {where}",
        "policy": "splitwise-tuned",
        "params": best_params,
    }
    args.out.write_text(yaml.safe_dump(card, sort_keys=False, width=120, allow_unicode=True), encoding="utf-8")
    print(f"best: {best_params}, {best_ratio:.4f}; written to {args.out}")


def charged(scenario: Scenario, policy: Policy) -> float:
    """The slowdown that a run is charged, unfinished requests included."""
    return float(run(scenario, policy).meters.slowdown)


def parse() -> Args:
    """The command line."""
    defaults = Args()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cards", nargs="+", default=defaults.cards)
    parser.add_argument("--seeds", type=int, default=defaults.seeds)
    parser.add_argument("--horizon-s", type=float, default=defaults.horizon_s)
    parser.add_argument("--prompt-threshold-tokens", nargs="+", type=float, default=defaults.prompt_threshold_tokens)
    parser.add_argument("--tbt-slowdown", nargs="+", type=float, default=defaults.tbt_slowdown)
    parser.add_argument("--out", type=Path, default=defaults.out)
    return Args(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse())
