"""``splitgym list``: what there is to choose from."""

from __future__ import annotations

import typer

from splitgym.cli.output import print_records

app = typer.Typer(help="List environments, policies, hardware profiles or workloads.", no_args_is_help=True)

AS_JSON = typer.Option(False, "--json", help="Print JSON instead of a table.")


@app.command()
def envs(as_json: bool = AS_JSON) -> None:
    """Environment cards; each (card, kind) is a Gymnasium id."""
    import gymnasium

    from splitgym.cards import list_cards, load_card

    records = []
    for card in map(load_card, list_cards()):
        machines = ", ".join(f"{g.role}={g.count}:{g.hardware}" for g in card.cluster.machines)
        records.append(
            {
                "name": card.name,
                "ids": [
                    name
                    for name, spec in gymnasium.registry.items()
                    if name.startswith("splitgym/") and spec.kwargs.get("card") == card.name
                ],
                "model": card.cluster.model,
                "machines": machines,
                "kind": card.defaults.kind,
                "description": card.description,
            }
        )
    print_records(records, as_json=as_json, columns=("name", "machines", "description"))


@app.command()
def policies(as_json: bool = AS_JSON) -> None:
    """Policies: routing, pools, both, and oracles, which know what no router can."""
    from splitgym.policies import list_policies

    records = [{"name": info.name, "kind": info.kind, "text": info.text} for info in list_policies()]
    print_records(records, as_json=as_json)


@app.command()
def hardware(as_json: bool = AS_JSON) -> None:
    """Hardware profiles: one model on one tensor-parallel group each."""
    from splitgym.hardware import list_profiles, load_profile

    profiles = [load_profile(*key) for key in list_profiles()]
    records = [
        {
            "hardware": profile.hardware,
            "model": profile.model.name,
            "tensor_parallel": profile.tensor_parallel,
            "kv_capacity_tokens": profile.kv_capacity_tokens,
            "prompt_2048_ms": 1e3 * profile.law.prompt_s(2048),
            "decode_32_ms": 1e3 * profile.law.decode_s(32, 32 * 1024),
            "cost_usd_per_hour": profile.cost_usd_per_hour,
            "prompt_error": profile.error.prompt_mean,
            "decode_error": profile.error.decode_mean,
        }
        for profile in profiles
    ]
    shown = [name for name in records[0] if not name.endswith("_error")]
    print_records(records, as_json=as_json, columns=shown)


@app.command()
def traces(as_json: bool = AS_JSON) -> None:
    """Workloads whose figures ship, for ``arrivals:`` and ``lengths:`` of a card; files go to ``--trace``."""
    from splitgym.workload import list_traces

    records = [{"name": name, "description": text} for name, text in list_traces().items()]
    print_records(records, as_json=as_json)
