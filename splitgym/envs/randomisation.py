"""Domain randomisation: machines that work not quite as their profiles say."""

from __future__ import annotations

from dataclasses import replace

from splitgym.errors import SplitgymError
from splitgym.hardware import HardwareProfile, LatencyLaw, drawn_law
from splitgym.randomness import Streams
from splitgym.sim.cluster import Cluster


def with_drawn_laws(cluster: Cluster, streams: Streams) -> Cluster:
    """The same cluster with a true latency law drawn for each of its profiles, from their uncertainty.

    Machines of one profile share the draw, and it depends on streams and profile alone. The router knows nothing of it:
    predicted times and the baseline stay those of the profiles.

    Raises:
        SplitgymError: if a profile states no uncertainty.
    """
    profiles = {machine.profile.name: machine.profile for machine in cluster.machines}
    drawn = {name: _drawn(profile, streams) for name, profile in profiles.items()}
    machines = (replace(machine, true_law=drawn[machine.profile.name]) for machine in cluster.machines)
    return replace(cluster, machines=tuple(machines))


def _drawn(profile: HardwareProfile, streams: Streams) -> LatencyLaw:
    if profile.uncertainty is None:
        raise SplitgymError(
            f"domain_randomisation: {profile.name} states no uncertainty to draw from; calibrate it anew"
        )
    return drawn_law(profile.law, profile.uncertainty, streams.generator(f"law-{profile.name}"))
