"""Trained runs as bundles: their network as a graph, and golden answers from the networks' own NumPy code."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from splitgym.cards import load_card
from splitgym.envs.actions import make_actions
from splitgym.envs.observations import Observer
from splitgym.errors import SplitgymError
from splitgym.export.actions import FORMS, choose
from splitgym.export.container import GOLDEN, NETWORK
from splitgym.export.heuristics import rules_of
from splitgym.export.manifest import Manifest, Network, Rules
from splitgym.export.recording import Answer, network_golden
from splitgym.learn.inference import NumpyNetwork
from splitgym.learn.learned import DecisionMode, heads_of, load_policy
from splitgym.learn.run_folder import RunFolder
from splitgym.policies import make_policy
from splitgym.view import ClusterView, Decision

Built = tuple[Manifest, dict[str, bytes]]
"""A manifest, and the files it is about."""


class RunExport:
    """A trained run on its way into a bundle.

    Args:
        run: its folder.
        decision: ``argmax`` or ``sample``; the run's own for ``None``.
        card: whose cluster the golden views are of; the run's own for ``None``.

    Raises:
        SplitgymError: if the folder is damaged, or the network does not fit the card.
    """

    def __init__(self, run: Path, decision: str | None, card: str | Path | None) -> None:
        folder = RunFolder(run)
        self._config = config = folder.config()
        self._weights = folder.weights()
        self._card = load_card(card or config.card)
        self._mode = cast(DecisionMode, decision or config.decision)
        self._policy = load_policy(run, self._mode)
        self._policy.reset(self._card.default_cluster, 0)  # raises where it cannot play
        self._heads = heads_of(config.kind, config.environment)
        self._rows = config.num_machines if config.network == "mlp" else None

        cluster = self._card.default_cluster
        rows = self._rows or cluster.num_machines
        choices = config.environment.get("heads", "both"), config.environment.get("action", "machine")
        self._actions = make_actions(config.kind, cluster, rows, *choices)
        self._observer = Observer(cluster.num_machines, rows)
        self._network = NumpyNetwork(config.network, self._weights, self._heads)

    def other(self) -> Rules | None:
        """Who decides what the run leaves open.

        Raises:
            SplitgymError: if that is no heuristic.
        """
        name = self._config.other
        if name is None:
            return None
        rules = rules_of(make_policy(name))
        if rules is None:
            raise SplitgymError(
                f"policy {self._policy.name!r}: its other half was {name!r}, and a bundle holds one network; "
                "name a heuristic in its place with other"
            )
        return rules

    def build(self, other: Rules | None, fallback: Rules, largest: int) -> Built:
        """The manifest and the files but for card and manifest.

        Raises:
            SplitgymError: if the network's scores are no use, or the sizes do not go together.
        """
        config, rows = self._config, self._rows
        if config.kind == "joint" and other is not None:
            raise SplitgymError("other: kind 'joint' leaves nothing to decide; leave it out")
        takes_fewer = rows is None or "max_machines" in config.environment
        smallest = 1 if takes_fewer else config.num_machines
        if largest < smallest:
            raise SplitgymError(f"largest cluster: {largest} machines, its network 'mlp' knows {smallest} only")
        manifest = Manifest(
            name=self._policy.name,
            decides=config.kind,
            network=Network(config.network, FORMS[self._actions.rules.form], rows, self._mode),
            heuristic=None,
            other=other,
            fallback=fallback,
            smallest_cluster=smallest,
            largest_cluster=min(largest, rows or largest),
            cadence={
                "arrivals": config.kind != "repurposing",
                "tick_s": None if config.kind == "routing" else self._card.episode.tick_s,
            },
            staleness_s=0.0 if self._card.telemetry is None else self._card.telemetry.oldest_s,
            trained=self._training(),
            evaluation={"split": "val", "mean_slowdown": config.validation} if config.validation else {},
        )
        golden = network_golden(
            self._policy, self._card, config.kind, len(self._heads), self._answer, samples=self._mode == "sample"
        )
        network: bytes = _graph().onnx_network(config.network, self._weights, self._heads, rows)
        return manifest, {GOLDEN: golden.to_bytes(), NETWORK: network}

    def _answer(self, view: ClusterView, draws: npt.NDArray[np.float64], suggested: Decision) -> Answer:
        scores = self._network.scores(self._observer.observe(view))
        masks = self._actions.masks(view)
        choice = [
            choose(part, mask, draws[head] if self._mode == "sample" else None)
            for head, (part, mask) in enumerate(zip(self._actions.by_head(scores), masks, strict=True))
        ]
        return Answer(scores, masks, self._actions.decision(np.array(choice), view, suggested))

    def _training(self) -> dict[str, Any]:
        config = self._config
        return {
            "card": Path(config.card).stem,
            "card_digest": config.card_digest,
            "machines": config.num_machines,
            "hardware": list(dict.fromkeys(machine.profile.name for machine in self._card.default_cluster.machines)),
            "algorithm": config.algorithm,
            "seed": config.seed,
            "decisions": config.decisions_taken,
            "reward": config.reward,
            "discounting": config.discounting,
            "environment": config.environment,
            "settings": config.settings,
            "versions": config.versions,
        }


def _graph() -> Any:
    try:
        return importlib.import_module("splitgym.export.graph")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise SplitgymError("onnx is not installed: needs pip install 'splitgym[export]'") from None
