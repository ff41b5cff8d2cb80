"""Unsplit engines: each serves whole requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from splitgym.router.engines import Client, Engine
from splitgym.router.protocols.base import Attempt, on_one_machine


class Plain:
    """Any server with OpenAI's interface."""

    splits = False
    unsplits = True

    def stream(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        """See `PhaseProtocol`."""
        return on_one_machine(attempt)

    async def change_role(self, client: Client, engine: Engine, role: int) -> None:
        """Roles are the router's own here."""
