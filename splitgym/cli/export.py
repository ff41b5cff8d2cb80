"""``splitgym export``: a policy as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from splitgym.cli.output import print_json
from splitgym.errors import SplitgymError


def export(
    policy: Annotated[
        str, typer.Argument(metavar="RUN_OR_POLICY", help="A trained run's folder, a heuristic, a policy card.")
    ],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="A file that ends in .zip, or a folder.")],
    decision: Annotated[str | None, typer.Option(help="argmax or sample; the run's own by default.")] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Of a heuristic; again for each.")
    ] = None,
    card: Annotated[str | None, typer.Option(help="Whose cluster the golden views show; the run's own.")] = None,
    other: Annotated[str | None, typer.Option(help="The heuristic beside a run's network; its own by default.")] = None,
    fallback: Annotated[str, typer.Option(help="The heuristic for when the policy fails.")] = "jsq-tokens",
    largest_cluster: Annotated[int | None, typer.Option(metavar="MACHINES", help="It may be asked about.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a bundle: a policy as checked files that decide without torch. It is loaded once before it is written."""
    from splitgym.export import export_policy

    manifest = export_policy(
        policy,
        out,
        decision=decision,
        params=_numbers(param or []),
        card=card,
        other=other,
        fallback=fallback,
        largest_cluster=largest_cluster,
    )
    if as_json:
        mode = None if manifest.network is None else manifest.network.decision
        print_json({"bundle": str(out), "name": manifest.name, "decides": manifest.decides, "decision": mode})
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"exported: {out}")
        console.print(f"use:      splitgym compare CARD --policy {out}")


def _numbers(texts: list[str]) -> dict[str, float]:
    numbers = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise SplitgymError(f"--param: {text!r} is not NAME=NUMBER; write tbt_slowdown=1.25, for example") from None
    return numbers
