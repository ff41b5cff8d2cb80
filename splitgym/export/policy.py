"""A bundle as a policy: what ``--policy bundle.zip`` means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitgym.errors import SplitgymError
from splitgym.export.container import GOLDEN, read_files
from splitgym.export.golden import Golden
from splitgym.export.heuristics import policy_of, replay
from splitgym.export.manifest import Manifest
from splitgym.export.runtime import Bundle
from splitgym.policies import Policy
from splitgym.policies.base import need_early_choice
from splitgym.policies.role_changes import decide_beside
from splitgym.randomness import Streams, hashed_uniform
from splitgym.sim.cluster import Cluster
from splitgym.view import ClusterView, Decision


class BundlePolicy:
    """A bundle's network as a policy; what its half leaves open, the policy named in its manifest decides.

    It decides as the run did that was exported (`splitgym.learn.LearnedPolicy`), draws included.

    Attributes:
        never_blocks: it may be asked where nothing may wait: there is a network of bounded size, and heuristics.
        propensity: the probability with which the network chose its part of the last decision; ``None`` where it had
            none or does not draw.
    """

    never_blocks = True

    def __init__(self, bundle: Bundle, place: str) -> None:
        manifest = bundle.manifest
        self.name = manifest.name
        self.bundle = bundle
        self.propensity: float | None = None
        self._decides = manifest.decides
        self._other: Policy | None = None if manifest.other is None else policy_of(manifest.other, place)

    def reset(self, cluster: Cluster, seed: int) -> None:
        """Start a run.

        Raises:
            SplitgymError: if the network is not for so many machines, or token machines are chosen late.
        """
        need_early_choice(f"bundle {self.name!r}", cluster)
        self.bundle.manifest.check_size(cluster.num_machines)
        self._hardware = hardware_of(cluster)
        self._key = Streams(seed).key("learned-policy")
        self._count = 0
        if self._other is not None:
            self._other.reset(cluster, seed)

    def decide(self, view: ClusterView) -> Decision:
        """The network's decision, or the other policy's."""
        self.propensity = None
        return decide_beside(self._other, self._decides, view, self._ask)

    def _ask(self, view: ClusterView, suggested: Decision) -> Decision:
        draws = [hashed_uniform(self._key, head, self._count) for head in range(self.bundle.num_draws)]
        self._count += 1
        decision, self.propensity = self.bundle.decide_with_propensity(view, draws, suggested, self._hardware)
        return decision


def bundle_policy(path: Path) -> Policy:
    """The policy in the bundle at ``path``, a zip or a directory, its golden views replayed.

    Raises:
        SplitgymError: if there is none, or it is refused: see `splitgym.export.runtime.Bundle`.
    """
    files, place = read_files(path), str(path)
    manifest = Manifest.of(files, place)
    policy_of(manifest.fallback, f"{place}: fallback")
    if manifest.heuristic is None:
        return BundlePolicy(Bundle(files, place), place)
    if GOLDEN not in files:
        raise SplitgymError(f"{place}: {GOLDEN}: missing; export the policy again")
    policy = policy_of(manifest.heuristic, place)
    replay(policy, Golden.of(files[GOLDEN], place), place)
    return policy


def hardware_of(cluster: Cluster) -> npt.NDArray[np.int64]:
    """(num_machines,) the number of each machine's hardware type, in the order in which machines bring them."""
    names = [machine.profile.name for machine in cluster.machines]
    types = list(dict.fromkeys(names))
    return np.array([types.index(name) for name in names])
