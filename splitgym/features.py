"""The feature table: every number a decision maker sees, with its unit, scale and source.

One table serves the simulator's view, the observations, the documentation and the export's manifest. A feature's
place in its tuple is its column. Sources: *static* (hardware profile or card), *reported* (an engine's metric, as old
as the last scrape), *booked* (what the router itself has assigned and not yet seen finished, and what the latency law
predicts from that). Lengths of outputs are predicted ones; nothing here needs what a router cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["static", "reported", "booked"]


@dataclass(frozen=True)
class Feature:
    """One number of the view.

    Its observation is ``value / scale`` where it is bounded by its scale, and ``value / (value + scale)`` else: both
    lie in [0, 1], neither needs running statistics, and small queues are told apart as well as long ones.
    """

    name: str
    unit: str
    scale: float
    source: Source
    text: str
    bounded: bool = False


def _flag(name: str, source: Source, text: str) -> Feature:
    return Feature(name, "0 or 1", 1.0, source, text, bounded=True)


MACHINE_FEATURES = (
    _flag("role_prompt", "booked", "prompts may be routed here"),
    _flag("role_token", "booked", "token phases may be routed here"),
    _flag("role_mixed", "booked", "both may be routed here"),
    _flag("ready", "booked", "serves in its role"),
    _flag("draining", "booked", "finishes what the new role does not permit"),
    _flag("switching", "booked", "changes role, does nothing"),
    _flag("down", "booked", "has failed"),
    Feature("kv_capacity_tokens", "tokens", 1e6, "static", "KV-cache the machine can hold"),
    Feature("prompt_tokens_per_s", "tokens/s", 2e4, "static", "rate of the prompt phase, one prompt of 2048 tokens"),
    Feature("decode_iteration_s", "s", 0.05, "static", "decode iteration of 32 requests of 1024 tokens"),
    Feature("pending_prompts", "requests", 4.0, "booked", "assigned here, first token not yet seen"),
    Feature("pending_prompt_tokens", "tokens", 4096.0, "booked", "their prompt tokens"),
    Feature("pending_prompt_s", "s", 0.5, "booked", "their prompt phases one by one, less the time since one ended"),
    Feature("decodes", "requests", 32.0, "booked", "in their token phase here, or on the way here"),
    Feature("coming_decodes", "requests", 4.0, "booked", "token phase assigned here, prompt phase not yet ended"),
    Feature("context_tokens", "tokens", 5e4, "booked", "prompt and streamed tokens of the decodes here"),
    Feature("remaining_output_tokens", "tokens", 5e3, "booked", "predicted tokens still to come, coming included"),
    Feature("booked_kv_tokens", "tokens", 1e5, "booked", "KV-cache of all assigned work at its predicted end"),
    Feature("running_requests", "requests", 32.0, "reported", "in the engine's batch"),
    Feature("waiting_requests", "requests", 4.0, "reported", "in the engine's queue"),
    Feature("kv_held_tokens", "tokens", 1e5, "reported", "KV-cache in use, reservations not counted"),
    Feature("prompt_s", "s", 0.2, "booked", "this request's prompt phase, alone on this machine"),
    Feature("predicted_ttft_s", "s", 0.5, "booked", "this request's TTFT if its prompt is sent here"),
    Feature("predicted_tbt_s", "s", 0.05, "booked", "decode iteration here once this and the coming ones have joined"),
    Feature("transfer_s", "s", 0.05, "static", "sending this request's KV-cache at this machine's link"),
    Feature(
        "report_age_s", "s", 1.0, "reported", "since the reported numbers were read; 0 where they are always fresh"
    ),
    Feature("prefix_hit_tokens", "tokens", 1024.0, "reported", "of this prompt's beginning, in the machine's memory"),
)

TIME_FEATURES = ("pending_prompt_s", "prompt_s", "predicted_ttft_s", "predicted_tbt_s", "transfer_s")
"""Those of a machine that change with time and request, not only when something happens to it."""

REQUEST_FEATURES = (
    Feature("prompt_tokens", "tokens", 1024.0, "booked", "length of the prompt"),
    Feature("predicted_output_tokens", "tokens", 256.0, "booked", "predicted length of the output"),
    Feature("baseline_ttft_s", "s", 0.2, "static", "TTFT alone on the card's baseline machine"),
    Feature("baseline_tbt_s", "s", 0.05, "static", "TBT alone on the card's baseline machine"),
    Feature("ttft_slo_s", "s", 1.0, "static", "TTFT that its class is promised; 0 where there are no classes"),
    Feature("tbt_slo_s", "s", 0.1, "static", "time between tokens that its class is promised; 0 without classes"),
)

CLUSTER_FEATURES = (
    Feature("prompt_machines", "machines", 8.0, "booked", "ready, or on the way, in role prompt"),
    Feature("token_machines", "machines", 8.0, "booked", "ready, or on the way, in role token"),
    Feature("mixed_machines", "machines", 8.0, "booked", "ready, or on the way, in role mixed"),
    Feature("pending_prompt_tokens", "tokens", 16384.0, "booked", "over all machines"),
    Feature("pending_prompt_s", "s", 2.0, "booked", "over all machines"),
    Feature("decodes", "requests", 128.0, "booked", "over all machines, coming ones included"),
    Feature("context_tokens", "tokens", 2e5, "booked", "over all machines"),
    Feature("arrival_rate_rps", "requests/s", 20.0, "booked", "over the last 10 to 20 s"),
    Feature("prompt_token_rate", "tokens/s", 2e4, "booked", "arriving, over the last 10 to 20 s"),
    Feature("output_token_rate", "tokens/s", 5e3, "booked", "predicted of what arrives, over the last 10 to 20 s"),
    Feature("switch_s", "s", 10.0, "static", "what a change between prompt and token costs after draining"),
)

NUM_MACHINE_FEATURES = len(MACHINE_FEATURES)
NUM_REQUEST_FEATURES = len(REQUEST_FEATURES)
NUM_CLUSTER_FEATURES = len(CLUSTER_FEATURES)

MACHINE_COLUMN = {feature.name: column for column, feature in enumerate(MACHINE_FEATURES)}
REQUEST_COLUMN = {feature.name: column for column, feature in enumerate(REQUEST_FEATURES)}
CLUSTER_COLUMN = {feature.name: column for column, feature in enumerate(CLUSTER_FEATURES)}


def feature_table() -> str:
    """The features as Markdown, for docs/environments.md."""
    lines = []
    groups = (
        ("machines", MACHINE_FEATURES),
        ("request", REQUEST_FEATURES),
        ("cluster", CLUSTER_FEATURES),
    )
    for group, features in groups:
        lines += [f"**`{group}`**", "", "| | feature | unit | scale | source | what |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {column} | `{f.name}` | {f.unit} | {'–' if f.bounded else f'{f.scale:g}'} | {f.source} | {f.text} |"
            for column, f in enumerate(features)
        ]
        lines.append("")
    return "\n".join(lines)
