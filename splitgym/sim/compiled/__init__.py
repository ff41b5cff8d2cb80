"""The compiled engine."""

from splitgym.sim.compiled.engine import CompiledEngine, Snapshot

__all__ = ["CompiledEngine", "Snapshot"]
