"""``CARD.md``: what a bundle is, for people."""

from __future__ import annotations

from splitgym.export.manifest import Manifest, Rules

_DECIDES = {
    "routing": "which machine processes a request's prompt and which generates its tokens",
    "repurposing": "which machine changes its role",
    "pool": "which machine changes its role",
    "joint": "which machines serve a request, and which machine changes its role",
    "both": "which machines serve a request, and which machine changes its role",
}


def describe(manifest: Manifest) -> str:
    """The card, as Markdown. Equal manifests give equal cards."""
    network = manifest.network
    lines = [f"# {manifest.name}", "", f"Decides {_DECIDES[manifest.decides]}.", ""]
    if network is None and manifest.heuristic is not None:
        lines += [f"- A heuristic: {_text(manifest.heuristic)}."]
    elif network is not None:
        lines += [
            f"- A trained network, `{network.architecture}`, in `policy.onnx`; it chooses `{network.form}`.",
            f"- Decision: `{network.decision}`, chosen when it was evaluated and to be obeyed.",
        ]
    size = f"{manifest.smallest_cluster} to {manifest.largest_cluster}"
    lines += [f"- For clusters of {size} machines, asked {_cadence(manifest)}."]
    if manifest.other is not None:
        lines += [f"- What it leaves open is decided by {_text(manifest.other)}."]
    lines += [f"- If it fails: {_text(manifest.fallback)}."]
    lines += [f"- Trained with reported features up to {manifest.staleness_s:g} s old."] if network else []
    if manifest.exported_by:
        lines += [
            f"- Exported by splitgym {manifest.exported_by['splitgym']}, commit {manifest.exported_by['commit']}."
        ]
    lines += ["", *_trained(manifest)]
    lines += [
        "## Use",
        "",
        "`splitgym compare CARD --policy THIS_BUNDLE`, or in Python",
        "`splitgym.export.Bundle.load`, which needs numpy and onnxruntime alone."
        if network
        else "`splitgym.export.bundle_policy`.",
        "Loading replays `golden.npz` and refuses the bundle if a byte, the feature table or a decision is another.",
    ]
    return "\n".join(lines) + "\n"


def _trained(manifest: Manifest) -> list[str]:
    if not manifest.trained:
        return []
    trained = manifest.trained
    lines = ["## Training", "", "| | |", "|---|---|"]
    facts = ("card", "card_digest", "machines", "algorithm", "seed", "decisions", "reward")
    lines += [f"| {name.replace('_', ' ')} | {trained[name]} |" for name in facts]
    lines += [f"| {name} | {version} |" for name, version in trained["versions"].items()]
    if manifest.evaluation:
        split, scores = manifest.evaluation["split"], manifest.evaluation["mean_slowdown"]
        lines += ["", f"Mean slowdown on the {split} seeds (1 is a request alone on the baseline machine):", ""]
        lines += [f"- `{mode}`: {value:.3g}" for mode, value in scores.items()]
    return [*lines, ""]


def _text(rules: Rules) -> str:
    parts = [rules.routing] if rules.pool is None else [rules.routing, rules.pool]
    texts = []
    for rule in parts:
        params = ", ".join(f"{name} {value:g}" for name, value in rule.params.items())
        texts.append(f"`{rule.policy}`" + (f" ({params})" if params else ""))
    return " with ".join(texts)


def _cadence(manifest: Manifest) -> str:
    tick_s = manifest.cadence["tick_s"]
    arrivals = ["at each arrival"] if manifest.cadence["arrivals"] else []
    return " and ".join(arrivals + ([] if tick_s is None else [f"every {tick_s:g} s"]))
