"""How KV-caches get from one emulated engine to another: vLLM's transfer parameters, SGLang's rooms."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from splitgym.emulator.engine import Engine, Sequence
from splitgym.emulator.leases import Lease

UNREACHABLE_S = 5.0
"""How long vLLM 0.32 waits for a peer that it has not met; one that it has is known to be gone at once."""


class PeerUnreachable(Exception):  # noqa: N818
    """The machine that keeps a cache does not answer."""


class Handover:
    """What the engines of one fleet know of each other.

    Args:
        overhead_s: of each transfer, in emulated seconds.
        recompute: vLLM's ``kv_load_failure_policy``: process a prompt again whose cache cannot be fetched.
    """

    def __init__(self, overhead_s: float = 0.0, *, recompute: bool = False) -> None:
        self.alive: dict[str, Engine] = {}  # by engine id
        self.modes: dict[str, str] = {}  # SGLang's: prefill or decode, by engine id
        self._met: set[tuple[str, str]] = set()  # engine ids: who has fetched from whom
        self._overhead_s = overhead_s
        self._recompute = recompute
        self._rooms: dict[int, asyncio.Future[tuple[Engine, Lease]]] = {}

    def params_of(self, engine: Engine, lease: Lease) -> dict[str, Any]:
        """What vLLM's prompt machine answers."""
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": engine.engine_id,
            "remote_block_ids": [lease.number],
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": engine.profile.tensor_parallel,
        }

    async def start(self, engine: Engine, sequence: Sequence, body: dict[str, Any]) -> None:
        """Bring a request into ``engine`` as its body says.

        Raises:
            PeerUnreachable: if its cache cannot be fetched.
            ValueError: if it does not fit, or its parameters are malformed.
        """
        params = body.get("kv_transfer_params") or {}
        if "bootstrap_room" in body:
            await self._start_in_room(engine, sequence, body["bootstrap_room"])
        elif params.get("do_remote_prefill"):
            blocks = params.get("remote_block_ids")
            if not isinstance(blocks, list) or not blocks:
                raise ValueError("kv_transfer_params.remote_block_ids: give a list")
            await self._fetch(params["remote_engine_id"], engine, sequence, blocks[0])
        else:
            engine.submit(sequence)

    async def _fetch(self, source_id: str, engine: Engine, sequence: Sequence, number: int) -> None:
        source = self.alive.get(source_id)
        try:
            await engine.fetch(sequence, partial(self._read, source_id, engine, number))
        finally:  # an aborted fetch tells the source, too
            if source is not None:
                source.leases.release(number)

    async def _read(self, source_id: str, engine: Engine, number: int) -> int | None:
        """See `Engine.fetch`.

        Raises:
            PeerUnreachable: if the source is not there, or goes meanwhile.
        """
        pair = (engine.engine_id, source_id)
        source = self.alive.get(source_id)
        if source is None and pair not in self._met:
            await asyncio.sleep(UNREACHABLE_S / engine.time_scale)
        if source is not None:
            self._met.add(pair)
            digest, prompt_tokens = source.leases.read(number)
            bytes_per_s = min(source.profile.link_bytes_per_s, engine.profile.link_bytes_per_s)
            seconds = self._overhead_s + engine.profile.model.kv_bytes_per_token * prompt_tokens / bytes_per_s
            await asyncio.sleep(seconds / engine.time_scale)
            if source_id in self.alive:
                return digest
        if not self._recompute:
            raise PeerUnreachable("the remote engine cannot be reached")
        return None

    async def _start_in_room(self, engine: Engine, sequence: Sequence, room: int) -> None:
        """SGLang: the same body goes to both, which meet in a room; the prompt side's answer is of no use."""
        meeting = self._rooms.setdefault(room, asyncio.get_running_loop().create_future())
        if self.modes.get(engine.engine_id) == "prefill":
            sequence.keep_cache = True
            sequence.output_tokens = 1
            engine.submit(sequence)
            await sequence.tokens.get()
            sequence.tokens.put_nowait(0)
            if sequence.lease is not None and not meeting.done():
                meeting.set_result((engine, sequence.lease))
            return
        try:
            source, lease = await meeting
        finally:
            self._rooms.pop(room, None)
        await self._fetch(source.engine_id, engine, sequence, lease.number)
