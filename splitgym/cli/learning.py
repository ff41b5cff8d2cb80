"""``splitgym train`` and ``splitgym compare``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console

from splitgym.cli.output import print_json
from splitgym.errors import SplitgymError

CardArgument = Annotated[str, typer.Argument(metavar="CARD", help="A shipped card's name, or a card's path.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def train(
    card: CardArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run's folder.")],
    kind: Annotated[str | None, typer.Option(help="routing, repurposing or joint; the card's default.")] = None,
    algo: Annotated[str, typer.Option(help="maskable-ppo, ppo or dqn.")] = "maskable-ppo",
    steps: Annotated[int, typer.Option(min=1, help="Decisions in all.")] = 131_072,
    seed: Annotated[int, typer.Option(min=0, help="Of the network and the training scenarios.")] = 0,
    network: Annotated[str, typer.Option(help="equivariant or mlp.")] = "equivariant",
    reward: Annotated[str | None, typer.Option(help="slowdown, slo+0.1*energy, …; the card's.")] = None,
    heads: Annotated[str, typer.Option(help="Of routing: both, prompt or token (dqn needs one).")] = "both",
    other: Annotated[str | None, typer.Option(help="The policy that decides the rest; the card's.")] = None,
    domain_randomisation: Annotated[
        bool, typer.Option("--domain-randomisation", help="Draw the machines' latency laws anew for each episode.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the run in DIR.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy on a card; TensorBoard finds its charts in DIR/tb."""
    from splitgym.cards import load_card

    loaded = load_card(card)
    environment: dict[str, str | bool] = {} if heads == "both" else {"heads": heads}
    if domain_randomisation:
        environment["domain_randomisation"] = True
    training = _needs_learn("splitgym.learn.training")
    folder = training.train(
        loaded,
        kind=kind or loaded.defaults.kind,
        algo=algo,
        steps=steps,
        seed=seed,
        out=out,
        network=network,
        reward=reward,
        other=other,
        environment=environment,
        resume=resume,
        progress=sys.stderr.isatty(),
    )
    if as_json:
        print_json({"run": str(folder), "tensorboard": str(folder / "tb")})
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"trained: {folder}")
        console.print(f"watch:   tensorboard --logdir {folder / 'tb'}")
        console.print(f"use:     splitgym compare {card} --policy {folder}")


def compare(
    card: CardArgument,
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy or a trained run, again for each; all heuristics by default.")
    ] = None,
    rates: Annotated[str | None, typer.Option(help="Requests per second, as 40,60,80; the card's by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many test seeds, the same for every policy.")] = 20,
    split: Annotated[str, typer.Option(help="Whose seeds: train, val or test.")] = "test",
    logdir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where TensorBoard is to find charts.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where Parquet and JSON go.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; their number changes no figure.")] = 1,
    engine: Annotated[str | None, typer.Option(help="compiled, the default, or reference: equal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Play policies on the same seeds: paired differences, intervals, and the regret to the best heuristic."""
    from splitgym.cards import load_card
    from splitgym.learn.compare import compare as compare_policies
    from splitgym.sim.run import DEFAULT_ENGINE

    comparison = compare_policies(
        load_card(card),
        policy or (),
        _parse_rates(rates),
        seeds=seeds,
        split=split,
        logdir=logdir,
        out=out,
        jobs=jobs,
        engine=engine or DEFAULT_ENGINE,
        progress=sys.stderr.isatty(),
    )
    if as_json:
        print_json(comparison.to_dict())
    else:
        comparison.print()
        if logdir is not None:
            Console(soft_wrap=True, highlight=False).print(f"watch: tensorboard --logdir {logdir}")


def _parse_rates(text: str | None) -> list[float] | None:
    if text is None:
        return None
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not 0 < rate < float("inf"):
            raise SplitgymError(f"--rates: {part.strip()!r} is no rate; give numbers above 0, as 40,60,80")
        rates.append(rate)
    return rates


def _needs_learn(module: str) -> ModuleType:
    """The module, or an error that says which extra brings what it imports."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "splitgym").partition(".")[0]
        if package != "splitgym":
            raise SplitgymError(f"{package} is not installed: needs pip install 'splitgym[learn]'") from None
        raise
